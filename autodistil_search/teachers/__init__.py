"""Internal: teachers of every family, how they are loaded, and weights to start from."""
