"""Adapters behind planning's model port."""
