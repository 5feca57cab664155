"""What Millpond decides: access, closure, lifetimes, expiry.

Plain blocking code without an event loop; knows no transport and no status code. The edge chooses how to call it:
methods with ``wait=False`` either answer without blocking or raise ``WouldBlock``, having done nothing.
"""
