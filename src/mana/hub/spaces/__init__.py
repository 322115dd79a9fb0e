"""Spaces: who is in them, by the signed membership log, and which keys are wrapped to whom."""
