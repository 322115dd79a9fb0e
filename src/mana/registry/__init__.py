"""The installed modules, checked once and then frozen."""
