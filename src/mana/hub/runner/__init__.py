"""The runner: works on due missions with what was granted, and writes sealed iterations back.

An operating-system process of its own. Plaintext and opened keys exist in its worker processes
only, one for each leased occurrence. Normative: docs/protocol/grants.md.
"""
