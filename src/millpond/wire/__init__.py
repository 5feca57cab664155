"""gRPC: admit, decode, call one service, encode. No policy, no loops over storage."""
