"""The vocabulary every layer shares: digests, names, errors, limits, the clock. Standard library only, no I/O."""
