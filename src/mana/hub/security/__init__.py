"""What a person reads about their keys and sessions: the log, sessions, revoked devices."""
