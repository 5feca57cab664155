"""What storage and names share: file locks, LMDB environments, and the one thread that writes to each."""
