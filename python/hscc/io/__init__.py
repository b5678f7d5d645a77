"""Files: checkpoints and models."""
