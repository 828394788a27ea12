"""Internal: the training of SuperLMs and students: its loop, losses, checkpoints and plan."""
