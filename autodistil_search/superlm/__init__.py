"""Internal: the elastic encoder of SuperLMs and students, and the relation loss."""
