"""Whether anything runs for an account, and what a day of its work may cost."""
