"""The installed modules, checked once, then frozen."""
