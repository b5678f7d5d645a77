"""One file a command; importing them makes the command line know them."""

from . import compress, demo, evaluate, export, finetune, inspect, report, serve, sweep

__all__ = ["compress", "demo", "evaluate", "export", "finetune", "inspect", "report", "serve", "sweep"]
