"""How a dataset lies on disk: folders and tables become Records."""
