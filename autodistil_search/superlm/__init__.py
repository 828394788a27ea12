"""Internal: the elastic encoder, which is SuperLM and student, and the relation loss."""
