"""Sockets, TLS and peers: what every server that listens on TCP needs, whatever is spoken on it."""
