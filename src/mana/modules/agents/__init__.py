"""What agents may ask for themselves: a change of their own memory, decided by the person."""
