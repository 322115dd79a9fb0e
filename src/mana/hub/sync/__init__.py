"""Sync: changes in, merged records and the log out, and a notice to whoever listens."""
