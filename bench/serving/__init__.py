"""Load on the serving Engine, and on a server by its URL."""
