"""The commands, a file each: flags, help, examples, and the printed result."""
