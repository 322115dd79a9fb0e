"""What only the operator does, on the hub's own machine: tokens, another KEK, limits of the work."""
