"""Accuracy after compression, by method and reduction."""
