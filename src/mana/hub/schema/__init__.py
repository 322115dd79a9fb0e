"""Bringing a database to the state that this release needs."""
