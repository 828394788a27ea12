"""Internal: export of students as folders that load without this package."""
