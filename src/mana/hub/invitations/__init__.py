"""Invitations into a space: who made them, who accepted them, and when they end."""
