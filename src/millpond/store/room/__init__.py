"""The quota: one ledger for all processes, waiting for room, and what is given up when there is none."""
