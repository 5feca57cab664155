"""Blobs in append-only files: their bytes, reading, writing, and making them durable."""
