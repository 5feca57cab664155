"""Millpond: the shared cache server for BuildStream."""
