"""The command line: top of the import chain."""
