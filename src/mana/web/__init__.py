"""The page that the device serves; it knows the device only."""
