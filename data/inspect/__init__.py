"""What is in a folder of shards: pictures, counts and histograms."""
