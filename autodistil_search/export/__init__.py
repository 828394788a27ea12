"""Internal: a student as a folder that others can load."""
