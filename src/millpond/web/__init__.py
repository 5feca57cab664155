"""HTTP: admit, decode, call one service, encode. The grammar and the states of HTTP/1.1 are h11's (ADR 12)."""
