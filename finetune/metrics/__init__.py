"""Metrics: overlap, surface, classification; an explicit policy for empty structures."""
