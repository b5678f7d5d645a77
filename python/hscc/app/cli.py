"""The command line: ``hscc --help``.

Exit codes: 0 done, 1 a fault of ours, 2 wrong usage or input (one line says what), 3 not equivalent where
``hscc evaluate --require-equivalent`` asks for it, 130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from . import commands  # noqa: F401 (registers them)
from .options import app


def main() -> None:
    """Entry point: turns wrong input into one line and exit code 2."""
    try:
        app()
    except (ValueError, TypeError, ImportError, FloatingPointError, OSError) as error:
        typer.echo(f"error: {' '.join(line.strip() for line in str(error).splitlines())}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
