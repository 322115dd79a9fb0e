"""What only the operator does, on the hub's own machine: one-time tokens, and another KEK."""
