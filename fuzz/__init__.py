"""Fuzz targets: one per parser. ``python -m fuzz TARGET --seconds N``; see ``targets.py``."""
