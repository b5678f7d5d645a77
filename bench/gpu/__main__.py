"""``python -m bench.gpu``."""

import sys

from .report import main

if __name__ == "__main__":  # processes that are started import this file, too
    sys.exit(main())
