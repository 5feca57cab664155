"""BuildStream's own server, which its releases contain for tests only; run by the Python of ``.venv-bst``.

Usage: python upstream_server.py DIRECTORY. It imports nothing of this package, because that Python does not know it.
"""

import signal
import sys
import threading

from buildstream._cas.casserver import create_server


def main() -> None:
    stopped = threading.Event()
    with create_server(sys.argv[1], enable_push=True, quota=None, index_only=False) as server:
        # create_server() puts a handler of its own here, which ends the process without stopping the casd behind it.
        signal.signal(signal.SIGTERM, lambda *_: stopped.set())
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        print(f"listening on http://127.0.0.1:{port}", flush=True)
        stopped.wait()
        server.stop(grace=1).wait()


if __name__ == "__main__":
    main()
