"""Internal: the commands as Python functions, and the results that they return."""
