"""A build site: servers, clients and projects that live as long as one test, or as one file of tests."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from system.bst_client import BstClient, Remote
from system.old_clients import OldClient, Release
from system.parts import require
from system.project_maker import Project, greeting_project
from system.server_process import BuildboxCasd, Millpond, ServerProcess, free_port

WORKERS = 2

Server = TypeVar("Server", bound=ServerProcess)


class BuildSite:
    """Makes what a test needs, each under a directory of its own, and clears it all away in the end."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made = 0
        self._clients: list[BstClient] = []
        self._servers: list[ServerProcess] = []

    def place(self, name: str) -> Path:
        """A path that nothing has used yet."""
        self._made += 1
        return self.root / f"{name}{self._made}"

    def server(self, *flags: str | Path, repo: Path | None = None, port: int = 0) -> Millpond:
        """``millpond serve`` with these flags; read-only unless they say otherwise."""
        listen = ["--listen", f"127.0.0.1:{port}", "--workers", str(WORKERS)]
        command = ["millpond", "serve", *listen, *flags, repo or self.place("repo")]
        return self._keep(Millpond(command, self.place("log")))

    def classic_server(self, *flags: str | Path, repo: Path) -> Millpond:
        """``bst-artifact-server`` with these flags."""
        command = ["millpond.cli.bst_artifact_server", "--port", str(free_port()), *flags, repo]
        return self._keep(Millpond(command, self.place("log")))

    def casd(self) -> BuildboxCasd:
        """Somebody else's storage."""
        return self._keep(BuildboxCasd(self.place("casd"), self.place("log")))

    def client(self, *, artifacts: Sequence[Remote] = (), sources: Sequence[Remote] = ()) -> BstClient:
        """A user who has never built anything, with these caches configured."""
        require("bst")
        client = BstClient(self.place("client"))
        self._clients.append(client)
        client.configure(artifacts=artifacts, sources=sources)
        return client

    def old_client(
        self, release: Release, *, artifacts: Sequence[Remote] = (), sources: Sequence[Remote] = ()
    ) -> OldClient:
        """The same with another BuildStream."""
        require(release.part)
        client = OldClient(self.place("client"), release)
        self._clients.append(client)
        client.configure(artifacts=artifacts, sources=sources)
        return client

    def project(self) -> Project:
        """A small project with the one element ``GREETING``."""
        return greeting_project(self.place("project"))

    def close(self) -> None:
        """Clear away, files too: they come to hundreds of megabytes. What each server printed is shown if a test fails.

        A server that does not end well is such a failure.
        """
        for client in self._clients:
            client.close()
        troubles = []
        for server in self._servers:
            try:
                if not server.ended:
                    server.stop()
            except AssertionError as trouble:
                troubles.append(str(trouble))
            print(server)
        shutil.rmtree(self.root, ignore_errors=True)
        assert not troubles, "\n".join(troubles)

    def _keep(self, server: Server) -> Server:
        self._servers.append(server)
        return server
