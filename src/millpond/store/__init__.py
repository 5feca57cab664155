"""Blobs: immutable, verified, evictable. Knows bytes and digests; never transports, messages or names' contents."""
