"""Released encoders: the registry of names, and downloads from the Hugging Face hub."""
