"""Internal: what each command does, and the folder that it leaves."""
