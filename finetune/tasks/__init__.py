"""Task kinds: classification, segmentation. A task is a YAML record, not code."""
