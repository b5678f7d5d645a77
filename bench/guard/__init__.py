"""How well the guard tells foreign images from new ones of the calibrated kind."""
