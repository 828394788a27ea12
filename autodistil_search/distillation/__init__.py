"""Internal: the training of SuperLMs and students, with its loop, losses, checkpoints and plan."""
