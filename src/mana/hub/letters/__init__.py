"""Letters: that something waits for a decision, and never what."""
