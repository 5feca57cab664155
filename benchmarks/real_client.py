"""Push and pull with the real ``bst``: many files and one large blob, as one artifact.

The artifact is built once, without a cache server. Each push comes from that client's cache to a fresh store; each pull
goes by artifact name, from an empty project, into a client cache that did not exist before: loading the real project
would fill it from the sources. The time is the client's own, from start to exit.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.corpus import SEED, Scale, blob_sizes
from benchmarks.measure import Sample, metered
from benchmarks.servers import Peers, RunningServer, ServerUnavailable

PUSH, PULL = "client-push", "client-pull"
TITLES = {PUSH: "bst artifact push", PULL: "bst artifact pull"}
CLIENT_SECONDS = 600
_FILES_PER_DIRECTORY = 100
_PROJECT = "name: bench\nmin-version: 2.0\nelement-path: elements\n"
_ELEMENT = "kind: import\nsources:\n- kind: local\n  path: files\n"


@dataclass(frozen=True, slots=True)
class Client:
    """A client that has the artifact ``name``, of ``files`` files, in its own cache below ``directory``."""

    peers: Peers
    directory: Path
    name: str
    files: int

    @classmethod
    def prepare(cls, peers: Peers, directory: Path, scale: Scale) -> Client:
        """Write the project and build it.

        Raises:
            ServerUnavailable: there is no ``bst``, or it failed.
        """
        project, empty = directory / "project", directory / "empty"
        _write_files(project / "files", scale)
        (project / "elements").mkdir()
        (project / "elements" / "tree.bst").write_text(_ELEMENT)
        (project / "project.conf").write_text(_PROJECT)
        (empty / "elements").mkdir(parents=True)
        (empty / "project.conf").write_text(_PROJECT)
        builder = cls(peers, directory, "", scale.client_files + 1)
        config = builder._config("built", server=None)
        builder._bst(config, project, "build", "tree.bst")
        key = builder._bst(config, project, "show", "--deps", "none", "--format", "%{full-key}", "tree.bst").strip()
        return cls(peers, directory, f"bench/tree/{key}", builder.files)

    def push(self, server: RunningServer, run: int) -> Sample:
        config = self._config("built", server)
        return self._sample(PUSH, server, run, lambda: self._artifact("push", config, "project", "tree.bst"))

    def pull(self, server: RunningServer, run: int) -> Sample:
        """The artifact must be on ``server``, and what arrives is counted."""
        cache = f"pulled-{server.kind.name}-{run}"
        config = self._config(cache, server)
        sample = self._sample(PULL, server, run, lambda: self._artifact("pull", config, "empty", self.name))
        blobs = self.directory / cache / "cas" / "objects"
        arrived = sum(len(names) for _, _, names in os.walk(blobs))
        shutil.rmtree(self.directory / cache)
        if arrived < self.files:
            raise ServerUnavailable(f"bst pulled {arrived} blobs from {server.kind.title} instead of {self.files}.")
        return sample

    def _sample(self, workload: str, server: RunningServer, run: int, work: Callable[[], None]) -> Sample:
        _, usage = metered(server, work)
        return Sample(
            workload=workload,
            server=server.kind.name,
            run=run,
            unit="file",
            units=self.files,
            wall_seconds=usage.seconds,
            server_cpu_seconds=usage.server_cpu_seconds,
            client_cpu_seconds=usage.client_cpu_seconds,
            others_share=usage.others_share,
            stolen_share=usage.stolen_share,
        )

    def _artifact(self, action: str, config: Path, project: str, target: str) -> None:
        self._bst(config, self.directory / project, "artifact", action, target)

    def _config(self, cache: str, server: RunningServer | None) -> Path:
        """A buildstream.conf whose every directory lies below ours; ``cache`` names the client's store."""
        root = self.directory / cache
        lines = [f"cachedir: {root}", f"sourcedir: {root}/sources", f"logdir: {root}/logs"]
        if server:
            lines += [
                "artifacts:",
                "  override-project-caches: true",
                "  servers:",
                f"  - url: http://{server.address}",
                "    push: true",
            ]
        path = self.directory / f"{cache}.conf"
        path.write_text("\n".join([*lines, ""]))
        return path

    def _bst(self, config: Path, project: Path, *arguments: str) -> str:
        options = ["--no-colors", "--no-interactive", "-C", str(project), "--config", str(config)]
        command = [str(self.peers.bst), *options, *arguments]
        environment = os.environ | {
            f"XDG_{kind}_HOME": str(self.directory / "xdg") for kind in ("CACHE", "CONFIG", "DATA")
        }
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=CLIENT_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise ServerUnavailable(f"bst {' '.join(arguments)} took more than {CLIENT_SECONDS} s.") from None
        if done.returncode != 0:
            raise ServerUnavailable(f"bst {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
        return done.stdout


def _write_files(root: Path, scale: Scale) -> None:
    rng = random.Random(SEED + 4)
    for number, size in enumerate(blob_sizes(rng, scale.client_files)):
        directory = root / f"{number // _FILES_PER_DIRECTORY:04d}"
        if number % _FILES_PER_DIRECTORY == 0:
            directory.mkdir(parents=True)
        # The number keeps the smallest ones from being the same blob.
        (directory / f"{number:06d}").write_bytes(b"%d\n" % number + rng.randbytes(size))
    (root / "large").write_bytes(rng.randbytes(scale.large_blob_bytes))
