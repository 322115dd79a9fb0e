"""The hub's HTTP edge: endpoints as declarations, problem documents, and one description."""
