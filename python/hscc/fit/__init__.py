"""Chosen structures as factors: fitted, refitted, fine-tuned."""
