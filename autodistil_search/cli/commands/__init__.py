"""Internal: the commands, a file each, with flags, help, examples and the printed result."""
