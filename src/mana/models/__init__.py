"""The adapters behind the planning loop's model port."""
