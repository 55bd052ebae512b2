"""Training: loop, checkpoints, reporting."""
