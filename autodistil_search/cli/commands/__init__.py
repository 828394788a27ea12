"""Internal: the commands, one file each, with flags, help, examples and the printed result."""
