"""The servers that teams move away from: ``bst-artifact-server`` as each release brought it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from system.old_clients import Release
from system.parts import casd, require
from system.server_process import START_SECONDS, STOP_SECONDS, ServerProcess, accepts, free_port


class OldServer(ServerProcess):
    """The real server of a release, which takes pushes. It is ended like the old ones were: by a signal, with no word."""

    def __init__(self, release: Release, repo: Path, log: Path) -> None:
        require(release.part)
        self.repo = repo
        self.port = free_port()
        program = release.bst.with_name("bst-artifact-server")
        casd_of = [] if release.is_classic else [f"PATH={casd(Release('2.6.0').bst).parent}:{os.environ['PATH']}"]
        super().__init__(["env", *casd_of, program, "--port", f"{self.port}", "--enable-push", repo], log)
        deadline = time.monotonic() + START_SECONDS
        while not accepts(self.port):
            if not self.running or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"{self}\n--- did not get ready")
            time.sleep(0.02)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """1.x dies of the signal, 1.93.6 ends with 255, and its casd may stay behind: none of that is ours to judge."""
        self.ended = True
        if self.running:
            self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self.kill()
