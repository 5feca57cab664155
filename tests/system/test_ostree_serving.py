"""Real ``ostree`` pulls from our server, and from nginx, what real ``ostree`` committed, byte by byte."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from system.build_site import BuildSite
from system.millpond_command import millpond
from system.nginx_server import Nginx, repository_below
from system.ostree_repo import LARGE_BYTES, Product, Puller, init, make_product, ostree
from system.ostree_site import got, ostree_url, serve, until
from system.server_process import accepts
from system.tls_keys import KeyPair, Keys

TRUST = "tls-ca-path={}"
SHOW = ("tls-client-cert-path={}", "tls-client-key-path={}")


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Product:
    """A repository as the old receiver left it, with a summary by cron."""
    made = make_product(tmp_path_factory.mktemp("product"), "whole", large_bytes=LARGE_BYTES)
    ostree("summary", "--update", repo=made.repo)
    return made


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Product:
    """The same without a large file."""
    made = make_product(tmp_path_factory.mktemp("small"), "small", seed=1)
    ostree("summary", "--update", repo=made.repo)
    return made


@pytest.fixture
def nginx(site: BuildSite, product: Product, request: pytest.FixtureRequest, keys: Keys) -> Iterator[Nginx]:
    """nginx on the product's repository, with or without TLS."""
    pair = keys.server_with_names if request.param else None
    server = Nginx(site.place("nginx"), repository_below("/artifacts", product.repo), keys=pair)
    yield server
    server.stop()


def tls_flags(pair: KeyPair, client_certs: Path | None = None) -> list[str | Path]:
    flags: list[str | Path] = ["--server-key", pair.key, "--server-cert", pair.cert]
    return [*flags, "--client-certs", client_certs] if client_certs else flags


def at(url: str, host: str = "localhost") -> str:
    """The same place under the name by which its certificate knows it."""
    return url.replace("127.0.0.1", host)


def assert_pulled(site: BuildSite, product: Product, url: str, *settings: str) -> None:
    """Both refs are listed, can be pulled, and are what was committed."""
    client = Puller(site.place("client"), url, *settings)
    assert client.remote_refs() == set(product.refs)
    for ref in product.refs:
        client.pull(ref)
        assert ostree("rev-parse", ref, repo=client.repo).stdout.strip() == product.commit
    assert client.checkout(product.refs[0], site.place("checkout")) == product.manifest
    shown = ostree("ls", "-R", "-C", "-X", product.commit, repo=client.repo).stdout
    assert shown == ostree("ls", "-R", "-C", "-X", product.commit, repo=product.repo).stdout
    assert "user.label" in shown


# -- pulling --------------------------------------------------------------------------------------------------------------


def test_an_artifact_is_pulled_over_http(site: BuildSite, product: Product) -> None:
    server = serve(site, product.repo, "--prefix", "/artifacts")
    assert ostree_url(server) == f"{server.url}/artifacts"
    assert_pulled(site, product, ostree_url(server))


def test_an_artifact_is_pulled_over_https(site: BuildSite, product: Product, keys: Keys) -> None:
    server = serve(site, product.repo, *tls_flags(keys.server_with_names))
    assert ostree_url(server).startswith("https://")
    assert_pulled(site, product, at(ostree_url(server)), TRUST.format(keys.server_with_names.cert))


@pytest.mark.parametrize("kind", ["server_with_chain", "server_in_one_file"])
def test_a_server_may_bring_any_kind_of_key(site: BuildSite, small: Product, keys: Keys, kind: str) -> None:
    server = serve(site, small.repo, *tls_flags(getattr(keys, kind)))
    trusted = keys.authority if kind == "server_with_chain" else keys.server_with_names
    assert_pulled(site, small, at(ostree_url(server)), TRUST.format(trusted.cert))


def test_client_certificates_decide_who_pulls_and_a_change_needs_no_restart(
    site: BuildSite, small: Product, keys: Keys, tmp_path: Path
) -> None:
    authorized = keys.authorize(keys.client.cert, keys.authority.cert, into=tmp_path / "authorized.crt")
    server = serve(site, small.repo, *tls_flags(keys.server_with_names, authorized))
    url, ref = at(ostree_url(server)), small.refs[0]

    def client(pair: KeyPair | None) -> Puller:
        shown = () if pair is None else (SHOW[0].format(pair.cert), SHOW[1].format(pair.key))
        return Puller(site.place("client"), url, TRUST.format(keys.server_with_names.cert), *shown)

    for welcome in (keys.client, keys.client_of_authority):
        client(welcome).pull(ref)
    for unknown in (None, keys.stranger, keys.second_client):
        assert client(unknown).pull(ref, ok=False).returncode != 0
    changed = tmp_path / "authorized.new"
    keys.authorize(keys.second_client.cert, into=changed).replace(authorized)
    until(lambda: client(keys.second_client).pull(ref, ok=False).returncode == 0)
    assert client(keys.client).pull(ref, ok=False).returncode != 0


def test_a_cache_for_newer_clients_serves_it_beside_its_own_port(site: BuildSite, product: Product, keys: Keys) -> None:
    flags = ["--ostree", product.repo, "--ostree-listen", "127.0.0.1:0", "--ostree-prefix", "/artifacts"]
    server = site.server(*flags, *tls_flags(keys.server_with_names))
    url = ostree_url(server)
    assert url.startswith("https://")
    assert url.endswith("/artifacts")
    assert_pulled(site, product, at(url), TRUST.format(keys.server_with_names.cert))
    first, second = [line for line in server.stdout.splitlines() if "listening on" in line]
    assert "may pull, nobody may push" in first
    assert f"anyone who reaches it may pull from the OSTree repository {product.repo}" in second


@pytest.mark.parametrize("nginx", [False, True], ids=["http", "https"], indirect=True)
def test_nginx_serves_the_same_directory(site: BuildSite, product: Product, nginx: Nginx, keys: Keys) -> None:
    assert_pulled(site, product, f"{nginx.url}/artifacts", TRUST.format(keys.server_with_names.cert))


def test_a_repository_that_our_init_made_is_pulled_from_when_it_is_still_empty(site: BuildSite) -> None:
    repo = site.place("artifacts")
    assert millpond("ostree", "init", repo).status == 0
    client = Puller(site.place("client"), ostree_url(serve(site, repo)))
    assert client.remote_refs() == set()


def test_a_repository_without_a_summary_gets_one_when_it_is_served(site: BuildSite) -> None:
    old = make_product(site.place("old"), "old")
    client = Puller(site.place("client"), ostree_url(serve(site, old.repo)))
    assert client.remote_refs() == set(old.refs)
    client.pull(old.refs[0])


def test_deltas_that_an_administrator_made_are_served(site: BuildSite) -> None:
    old = make_product(site.place("old"), "old")
    ostree("static-delta", "generate", "--empty", old.refs[0], repo=old.repo)
    ostree("summary", "--update", repo=old.repo)
    client = Puller(site.place("client"), ostree_url(serve(site, old.repo)))
    ostree("pull", "--mirror", "--require-static-deltas", "cache", old.refs[0], repo=client.repo)
    ostree("fsck", repo=client.repo)


def test_detached_signatures_are_served(site: BuildSite) -> None:
    old = make_product(site.place("old"), "old")
    signature = old.repo / "objects" / old.commit[:2] / f"{old.commit[2:]}.commitmeta"
    signature.write_bytes(b"a signature")
    server = serve(site, old.repo)
    assert got(f"{ostree_url(server)}/{signature.relative_to(old.repo)}") == (200, b"a signature")


# -- the server as a process ------------------------------------------------------------------------------------------------


def test_a_pull_in_parts_is_the_same_file(site: BuildSite, product: Product) -> None:
    server = serve(site, product.repo)
    large = max((path for path in product.repo.rglob("*.filez")), key=lambda path: path.stat().st_size)
    url = f"{ostree_url(server)}/{large.relative_to(product.repo)}"
    parts = [got(url, Range=f"bytes={asked}") for asked in ("0-49999999", "50000000-")]
    assert [status for status, _ in parts] == [206, 206]
    assert b"".join(part for _, part in parts) == large.read_bytes()


def test_many_pull_at_once(site: BuildSite, small: Product) -> None:
    url = ostree_url(serve(site, small.repo))
    clients = [Puller(site.place("client"), url) for _ in range(6)]
    pulls = [
        subprocess.Popen(
            ["ostree", "pull", f"--repo={client.repo}", "--mirror", "cache", small.refs[0]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for client in clients
    ]
    said = [pull.communicate(timeout=300)[0] for pull in pulls]
    assert [pull.returncode for pull in pulls] == [0] * len(pulls), said
    for client in clients[::3]:
        ostree("fsck", repo=client.repo)


def test_a_server_that_is_killed_is_started_again(site: BuildSite, small: Product) -> None:
    server = site.server("--ostree", small.repo, "--ostree-listen", "127.0.0.1:0")
    url = ostree_url(server)
    (process,) = processes_of(server, "ostree")
    os.kill(process, signal.SIGKILL)
    client = Puller(site.place("client"), url)
    until(lambda: "ostree serves again" in server.stderr)
    client.pull(small.refs[0])
    assert "worker 0" not in server.stderr


def test_who_is_being_answered_when_the_server_is_stopped_gets_it_all(site: BuildSite, product: Product) -> None:
    server = serve(site, product.repo)
    large = max((path for path in product.repo.rglob("*.filez")), key=lambda path: path.stat().st_size)
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    client.request("GET", f"/{large.relative_to(product.repo)}")
    answer = client.getresponse()
    begun = answer.read(1000)
    server._process.send_signal(signal.SIGTERM)
    until(lambda: not accepts(server.port))
    assert server.running
    assert begun + answer.read() == large.read_bytes()
    client.close()
    server.stop()


def test_it_ends_with_its_supervisor_and_holds_no_port_then(site: BuildSite, small: Product) -> None:
    server = serve(site, small.repo)
    (process,) = processes_of(server, "ostree")
    os.kill(server._process.pid, signal.SIGKILL)
    server.ended = True
    server._process.wait()
    until(lambda: is_gone(process))
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", server.port))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ostree", "serve", "--listen", "127.0.0.1:0", "{missing}"), "is no OSTree repository"),
        (("ostree", "serve", "--listen", "127.0.0.1:0", "{bare}"), "archive-z2"),
        (("ostree", "serve", "--listen", "127.0.0.1:{used}", "{good}"), "is already in use"),
        (("serve", "--ostree", "{missing}", "--ostree-listen", "127.0.0.1:0", "--listen", "127.0.0.1:0", "{cache}"), "OSTree"),
        (("serve", "--ostree-listen", "127.0.0.1:0", "{cache}"), "go together"),
        (("ostree", "serve", "--listen", "127.0.0.1:0", "--server-key", "{missing}", "--server-cert", "{missing}", "{good}"), "key"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_in_one_sentence(
    site: BuildSite, small: Product, arguments: tuple[str, ...], words: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        places = {
            "missing": site.place("missing"),
            "bare": init(site.place("bare"), "bare-user"),
            "good": small.repo,
            "cache": site.place("cache"),
            "used": taken.getsockname()[1],
        }
        said = millpond(*(argument.format(**places) for argument in arguments))
    assert said.status == 2
    assert words in said.errors
    assert not places["missing"].exists()


def processes_of(server: object, role: str) -> list[int]:
    """Our processes of a role, children of this server."""
    found = subprocess.run(
        ["ps", "--ppid", str(server._process.pid), "-o", "pid=,args="],  # type: ignore[attr-defined]
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(line.split()[0]) for line in found.stdout.splitlines() if f"millpond.worker {role} " in line]


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
