"""The data modules: siblings that never meet and import the domain only."""
