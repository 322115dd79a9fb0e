"""Mana: a self-hosted, local-first, end-to-end-encrypted AI workbench."""
