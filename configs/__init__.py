"""Shipped YAML: collections, pretrain, finetune, tasks, launch."""
