"""Runs the model on data and notes what passes by."""
