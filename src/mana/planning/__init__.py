"""Agents without I/O: prompts, replies, dispatch and the planning loop."""
