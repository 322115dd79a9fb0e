"""Accounts: sign-up, log-in, sessions and devices. The hub holds no key that opens a record."""
