"""Links: a new device is unlocked by one that is signed in."""
