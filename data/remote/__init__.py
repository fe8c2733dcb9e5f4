"""Shards behind a URL: stores, verified shared cache, fetching ahead."""
