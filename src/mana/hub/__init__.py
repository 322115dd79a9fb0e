"""The PostgreSQL side: it keeps and serves what it cannot read."""
