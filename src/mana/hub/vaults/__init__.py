"""The vault of an account: what stands, its changes, and the chain of their statements."""
