"""Many compressions of one network: what is varied, what came of each, and which of them is wanted."""
