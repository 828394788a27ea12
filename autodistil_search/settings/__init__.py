"""Internal: the settings of each command, as typed records."""
