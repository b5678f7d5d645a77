"""Which networks compress, compile and export: ``python -m bench.coverage``."""
