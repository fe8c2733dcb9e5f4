"""The built-in data: generated anatomy with labels, in the file formats of real datasets."""
