"""Internal: labelled tasks, their metrics, and fine-tuning on them."""
