"""Answering requests: micro-batches on each device, within limits, watched by a guard."""
