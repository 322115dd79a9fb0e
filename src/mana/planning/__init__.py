"""Agents without I/O: prompt, loop, dispatch and guardrails, driven through ports."""
