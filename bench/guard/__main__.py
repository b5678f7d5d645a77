"""``python -m bench.guard``."""

import typer

from .study import main

if __name__ == "__main__":
    typer.run(main)
