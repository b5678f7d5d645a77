"""Pure functions on moments: no model, no data."""
