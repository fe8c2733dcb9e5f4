"""Collection → shards: read, preprocess, claim a folder, build in parallel or on Ray, survive crashes."""
