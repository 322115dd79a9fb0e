"""Sync without I/O: the messages of hub and device, and the rules that both follow."""
