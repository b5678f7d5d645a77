"""Benches of the kernels and of whole models; ``python -m bench.kernels --help`` starts them."""
