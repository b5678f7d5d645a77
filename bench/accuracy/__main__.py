"""``python -m bench.accuracy``."""

from .study import start

if __name__ == "__main__":
    start()
