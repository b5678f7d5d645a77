"""Files: checkpoints, images, models."""
