"""The register of grants: the authority over what the runner may open, and until when."""
