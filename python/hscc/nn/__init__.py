"""The modules of a compressed network, and their surgery."""
