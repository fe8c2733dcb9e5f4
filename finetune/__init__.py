"""Fine-tuning and evaluation on held-out tasks. Imports pretrain and data."""
