"""Data modules: siblings that never meet, reached through the catalogue only."""
