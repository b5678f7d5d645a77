"""The modules that a compressed network consists of, and their surgery."""
