"""``python -m benchmarks``."""

import os
import sys

# grpcio's fork handlers are not needed (every process is started afresh) and complain about the threads of our channels.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from benchmarks.cli import main

sys.exit(main())
