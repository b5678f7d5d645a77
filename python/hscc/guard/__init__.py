"""Says of each image whether it is like those that a model was calibrated on."""
