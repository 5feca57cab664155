"""``bst-artifact-receive``: the receiving side of a push over ssh, a process for each. No event loop, no gRPC, no argparse."""
