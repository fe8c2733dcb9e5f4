"""Many devices, large networks: strategies, sharded weights, micro-batches that fit, profiles."""
