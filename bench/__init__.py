"""Benches: of layers, whole networks, accuracy and GPUs, a folder each; ``python -m bench.kernels --help``."""
