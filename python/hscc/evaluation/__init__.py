"""How good a model is, how fast, and whether a compressed one is still the same; nothing is changed here."""
