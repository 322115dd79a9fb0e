"""Notes: titled texts that a person keeps and an agent may read or add to."""
