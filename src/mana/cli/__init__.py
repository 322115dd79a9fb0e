"""The command line; it may call both sides."""
