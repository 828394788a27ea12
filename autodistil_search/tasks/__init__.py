"""Labelled tasks: their rows and metrics, and fine-tuning on them."""
