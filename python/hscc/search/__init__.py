"""What each layer may become, what that gains and costs, and what it gets."""
