"""Bytes in, bytes out: keys, seals, wraps and signatures. Normative: docs/protocol/crypto.md.

The only importer of `cryptography` and `argon2`. Nothing here logs, reads a clock or keeps
state; randomness is an argument with the operating system's source as its default, so that
a vector can fix it. What does not open, verify or parse raises from `crypto.errors`.
"""
