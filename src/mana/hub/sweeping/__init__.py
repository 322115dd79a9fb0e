"""The end of rows that grow old: what stays for how long is in docs/operating.md."""
