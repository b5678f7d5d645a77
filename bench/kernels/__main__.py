"""``python -m bench.kernels``."""

import sys

from .layers import main

if __name__ == "__main__":
    sys.exit(main())
