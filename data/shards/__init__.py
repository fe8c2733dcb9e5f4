"""The shard format: writer, index, reader, check."""
