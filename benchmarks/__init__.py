"""Millpond beside its peers: the same requests, one machine, one run.

``python -m benchmarks run`` starts every server in turn, on a fresh store and on the loopback only, and loads it with the
same calls; ``python -m benchmarks check`` compares the outcome with ``bars.toml``. What is measured, how, and what the
numbers cannot say is in ``README.md`` beside this file.

The rule that all modules here keep: nothing is serialised, hashed or checked while a clock runs, and nothing is counted
that was not checked after it stopped.
"""
