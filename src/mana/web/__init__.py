"""The page: what a person sees and does, served by their own device."""
