"""The person's side: replica, keys and sync, without an HTTP server."""
