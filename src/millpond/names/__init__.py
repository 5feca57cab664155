"""Names and what they stand for: small, transactional, precious. Knows digests; never blobs, transports or messages."""
