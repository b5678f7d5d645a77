"""``python -m bench.networks``."""

import sys

from .times import main

if __name__ == "__main__":
    sys.exit(main())
