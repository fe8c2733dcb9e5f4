"""A run that lives on: checkpoints, preemption, steps that went wrong, and their replay."""
