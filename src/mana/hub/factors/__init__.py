"""Second factors of a log-in: codes of an authenticator, and passkeys."""
