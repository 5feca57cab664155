"""Protocols without I/O and without a clock: what names and frames mean. Standard library only."""
