"""The how-to is followed, block by block: what it says is what is run, with other names, ports and directories."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from system.build_site import BuildSite
from system.nginx_server import Nginx
from system.ostree_push_simulator import tar_of
from system.ostree_repo import Product, Puller, assert_sound, closure, make_product, refs_of
from system.ostree_site import BIN, got, ostree_url, through_ssh
from system.parts import ROOT, require
from system.server_process import Millpond
from system.ssh_server import SshServer
from system.tls_keys import Keys

GUIDE = (ROOT / "docs" / "how-to" / "ostree-cache.md").read_text()
PULL_URL = "https://cache.example.org/artifacts"
PUSH_URL = "ssh://artifacts@cache.example.org:22/artifacts"


def blocks(kind: str) -> list[str]:
    """What stands in the guide between fences of this kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


class Machine:
    """The cache's machine as the guide has it made, up to the user, whom the tests' own stands for."""

    def __init__(self, site: BuildSite, init: str) -> None:
        self.site = site
        self.home = site.place("home")
        self.home.mkdir()
        subprocess.run(["bash", "-ec", init], cwd=self.home, env=self._environment, check=True)
        self.user = subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()
        lines = "".join(blocks("sshd_config")).replace("Match user artifacts", f"Match user {self.user}")
        self.sshd = SshServer(site.place("sshd"), lines, home=self.home, bin_directory=BIN)

    @property
    def repo(self) -> Path:
        return self.home / "artifacts"

    @property
    def _environment(self) -> dict[str, str]:
        return {"HOME": str(self.home), "PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin"}

    def push(self, product: Product) -> None:
        """As a client whose URL is the guide's."""
        path = re.fullmatch(r"ssh://artifacts@cache\.example\.org:22(/.*)", PUSH_URL)
        assert path
        client = through_ssh(self.sshd, path[1])
        probed = client.probe()
        assert PULL_URL.encode() + b"\0" in probed.answers[0], self.sshd.log
        sent = tar_of(closure(product.repo, product.refs, self.site.place("sent")))
        outcome = client.push(dict.fromkeys(product.refs, product.commit), sent)
        assert outcome.is_done, f"{outcome}\n{self.sshd.log}"


@pytest.fixture(params=blocks("sh")[:2], ids=["millpond", "ostree"])
def machine(site: BuildSite, request: pytest.FixtureRequest) -> Iterator[Machine]:
    require("ostree")
    machine = Machine(site, request.param)
    yield machine
    machine.sshd.stop()


@pytest.fixture
def product(site: BuildSite) -> Product:
    return make_product(site.place("built"), "base", seed=3)


def test_the_guide_has_the_urls_that_clients_always_wrote() -> None:
    assert blocks("yaml") == [f"artifacts:\n  url: {PULL_URL}\n", f"artifacts:\n  url: {PUSH_URL}\n"]
    assert f"--pull-url {PULL_URL} --verbose artifacts" in blocks("sshd_config")[0]


def test_what_is_pushed_as_the_guide_says_is_pulled_from_our_server(
    site: BuildSite, machine: Machine, product: Product, keys: Keys
) -> None:
    machine.push(product)
    (command,) = blocks("sh")[2:]
    words = shlex.split(command.replace("0.0.0.0:443", "127.0.0.1:0"))
    files = {
        "server.key": keys.server_with_names.key,
        "server.crt": keys.server_with_names.cert,
        "artifacts": machine.repo,
    }
    server = site._keep(Millpond([str(files.get(word, word)) for word in words], site.place("log")))
    url = ostree_url(server).replace("127.0.0.1", "localhost")
    assert re.fullmatch(r"https://localhost:\d+/artifacts", url)
    client = Puller(site.place("client"), url, f"tls-ca-path={keys.server_with_names.cert}")
    client.pull(product.refs[0])
    assert client.checkout(product.refs[0], site.place("checkout")) == product.manifest
    assert_sound(machine.repo)


def test_what_is_pushed_as_the_guide_says_is_pulled_from_nginx(
    site: BuildSite, machine: Machine, product: Product
) -> None:
    machine.push(product)
    rest = "\n".join(blocks("nginx")).replace("/home/artifacts", str(machine.home))
    server = Nginx(site.place("nginx"), rest)
    try:
        url = f"{server.url}/artifacts"
        client = Puller(site.place("client"), url)
        client.pull(product.refs[1])
        assert client.checkout(product.refs[1], site.place("checkout")) == product.manifest
        assert got(f"{url}/summary.sig") == (404, b"")
        assert got(f"{url}/objects/ab/{'c' * 62}.commit") == (404, b"")
        for hidden in ("state/millpond/pushes", ".lock", "tmp"):
            assert got(f"{url}/{hidden}")[0] == 404
    finally:
        server.stop()


def test_another_user_who_serves_the_repository_can_read_what_is_pushed(machine: Machine, product: Product) -> None:
    """nginx runs as a user of its own, in the tests as that of the tests."""
    machine.push(product)
    served = [machine.repo, machine.repo / "config", machine.repo / "summary"]
    for directory in ("objects", "refs"):
        served += [machine.repo / directory, *(machine.repo / directory).rglob("*")]
    closed = [path for path in served if not path.stat().st_mode & (0o005 if path.is_dir() else 0o004)]
    assert closed == []
    pushes = machine.repo / "state" / "millpond" / "pushes"
    assert not (pushes.stat().st_mode | pushes.parent.stat().st_mode) & 0o007


def test_a_client_that_only_pulls_is_not_told_more_than_that_there_is_nothing(
    site: BuildSite, machine: Machine, product: Product
) -> None:
    """The very first client of a cache that the guide made finds it configured, and empty."""
    client = through_ssh(machine.sshd)
    assert client.probe().status == 0
    assert refs_of(machine.repo) == {}
    assert (machine.repo / "summary").exists()


def test_what_the_guide_has_an_administrator_call_can_be_called(machine: Machine, product: Product) -> None:
    machine.push(product)
    commands = re.findall(r"^    (millpond ostree .+)$", GUIDE, re.MULTILINE)
    assert {command.split()[2] for command in commands} == {"init", "prune", "check", "list"}
    for command in commands:
        ended = subprocess.run(
            ["bash", "-ec", command], cwd=machine.home, env=machine._environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
    assert set(refs_of(machine.repo)) == set(product.refs)
    assert_sound(machine.repo)
