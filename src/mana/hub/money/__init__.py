"""Money: what each call may use is reserved before it, settled after it, and summed by the hour."""
