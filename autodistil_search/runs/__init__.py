"""Internal: the work of each command, and the folder that it writes."""
