"""Whole networks: how long they take, and how long their compression does."""
