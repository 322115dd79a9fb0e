"""Measurements. They compare in one run and print ratios; they are never tests."""
