"""Encrypted caches: every kind of key that users have works with the real client, and who is not authorized stays out."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from system.bst_client import BstClient, Remote
from system.build_site import BuildSite
from system.file_tree import manifest
from system.project_maker import GREETING
from system.server_process import Millpond
from system.tls_keys import KeyPair, Keys


def _flags(server: KeyPair, client_certs: Path | None = None) -> list[str | Path]:
    flags: list[str | Path] = ["--enable-push", "--server-key", server.key, "--server-cert", server.cert]
    return [*flags, "--client-certs", client_certs] if client_certs else flags


def _remote(server: Millpond, trusted: Path, client: KeyPair | None = None, host: str = "localhost") -> Remote:
    """One that pushes. Without retries: who is refused is refused, and need not wait to hear it five times."""
    own = {"client_key": client.key, "client_cert": client.cert} if client else {}
    return Remote(url=server.url_at(host), push=True, server_cert=trusted, retries=0, **own)


def _assert_shared(site: BuildSite, pushing: Remote, pulling: Remote) -> None:
    """What one client pushes, another one pulls."""
    project = site.project()
    artifact = site.client(artifacts=[pushing]).build(project, GREETING)
    assert manifest(site.client(artifacts=[pulling]).fetch(artifact)) == manifest(project.files(GREETING))


def _is_refused(client: BstClient, site: BuildSite) -> bool:
    """Does the client give the cache up, and its build nevertheless go on to the end?"""
    outcome = client.run("build", GREETING, project=site.project())
    return "Failed to initialize remote" in outcome.output and outcome.pushed_to == []


def _openssl(command: str, *more: str | Path) -> None:
    subprocess.run(["openssl", *command.split(), *more], check=True, capture_output=True)


class Case(NamedTuple):
    """A server's key pair, what its clients trust, and the name by which they call it."""

    pair: KeyPair
    trusted: Path
    host: str


@pytest.mark.parametrize(
    "case_of",
    [
        pytest.param(lambda keys: Case(keys.server, keys.server.cert, "localhost"), id="the_old_documentation"),
        pytest.param(lambda keys: Case(keys.server_with_names, keys.server_with_names.cert, "127.0.0.1"), id="EC_SAN"),
        pytest.param(lambda keys: Case(keys.server_with_chain, keys.authority.cert, "localhost"), id="chain_of_a_CA"),
        pytest.param(
            lambda keys: Case(keys.server_in_one_file, keys.server_with_names.cert, "localhost"), id="one_PEM"
        ),
    ],
)
def test_a_server_may_bring_any_kind_of_key(site: BuildSite, keys: Keys, case_of: Callable[[Keys], Case]) -> None:
    pair, trusted, host = case_of(keys)
    server = site.server(*_flags(pair))
    remote = _remote(server, trusted, host=host)
    assert server.scheme == "https"
    _assert_shared(site, remote, remote)


def test_the_keys_of_the_old_documentation_authorize_a_client(site: BuildSite, keys: Keys, tmp_path: Path) -> None:
    authorized = keys.authorize(keys.client.cert, into=tmp_path / "authorized.crt")
    remote = _remote(site.server(*_flags(keys.server, authorized)), keys.server.cert, keys.client)
    _assert_shared(site, remote, remote)


def test_two_users_with_the_same_subject_both_get_in(site: BuildSite, keys: Keys, tmp_path: Path) -> None:
    authorized = keys.authorize(keys.client.cert, keys.second_client.cert, into=tmp_path / "authorized.crt")
    server = site.server(*_flags(keys.server, authorized))
    first, second = (_remote(server, keys.server.cert, pair) for pair in (keys.client, keys.second_client))
    _assert_shared(site, first, second)
    _assert_shared(site, second, first)


@pytest.mark.parametrize("kind", ["client_of_authority", "ec_client"])
def test_a_client_may_bring_any_kind_of_key(site: BuildSite, keys: Keys, tmp_path: Path, kind: str) -> None:
    authorized = keys.authorize(keys.authority.cert, keys.ec_client.cert, into=tmp_path / "authorized.crt")
    server = site.server(*_flags(keys.server_with_chain, authorized))
    remote = _remote(server, keys.authority.cert, getattr(keys, kind))
    _assert_shared(site, remote, remote)


@pytest.mark.parametrize("stranger", [False, True], ids=["no_certificate", "a_certificate_that_is_not_authorized"])
def test_who_is_not_authorized_is_refused(site: BuildSite, keys: Keys, tmp_path: Path, stranger: bool) -> None:
    authorized = keys.authorize(keys.client.cert, into=tmp_path / "authorized.crt")
    server, project = site.server(*_flags(keys.server, authorized)), site.project()
    friend = site.client(artifacts=[_remote(server, keys.server.cert, keys.client)])
    artifact = friend.build(project, GREETING)

    refused = site.client(artifacts=[_remote(server, keys.server.cert, keys.stranger if stranger else None)])
    assert _is_refused(refused, site)
    assert refused.attempt("artifact", "pull", artifact).pulled_from == []


def test_a_change_of_the_authorized_certificates_needs_no_restart(site: BuildSite, keys: Keys, tmp_path: Path) -> None:
    authorized = keys.authorize(keys.client.cert, into=tmp_path / "authorized.crt")
    server = site.server(*_flags(keys.server, authorized))
    first, second = (_remote(server, keys.server.cert, pair) for pair in (keys.client, keys.second_client))
    assert _is_refused(site.client(artifacts=[second]), site)
    keys.authorize(keys.second_client.cert, into=authorized)
    _assert_shared(site, second, second)
    assert _is_refused(site.client(artifacts=[first]), site)


def test_a_client_that_is_no_authority_gets_in_and_lets_nobody_else_in(
    site: BuildSite, keys: Keys, tmp_path: Path
) -> None:
    careful, rogue = (KeyPair(tmp_path / f"{name}.crt", tmp_path / f"{name}.key") for name in ("careful", "rogue"))
    new = "req -new -newkey rsa:4096 -x509 -sha256 -days 3650 -nodes -batch -addext basicConstraints=critical,CA:FALSE"
    _openssl(new, "-subj", "/CN=careful", "-out", careful.cert, "-keyout", careful.key)
    _openssl(
        "req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=rogue",
        *("-CA", careful.cert, "-CAkey", careful.key, "-out", rogue.cert, "-keyout", rogue.key),
    )
    authorized = keys.authorize(careful.cert, into=tmp_path / "authorized.crt")
    server = site.server(*_flags(keys.server, authorized))
    remote = _remote(server, keys.server.cert, careful)
    _assert_shared(site, remote, remote)
    assert _is_refused(site.client(artifacts=[_remote(server, keys.server.cert, rogue)]), site)


def test_a_client_that_does_not_know_the_servers_certificate_talks_to_nobody(site: BuildSite, keys: Keys) -> None:
    server = site.server(*_flags(keys.server))
    assert _is_refused(site.client(artifacts=[_remote(server, keys.authority.cert)]), site)


def test_one_bad_certificate_is_skipped_with_a_warning_and_the_others_get_in(
    site: BuildSite, keys: Keys, tmp_path: Path
) -> None:
    bad = "-----BEGIN CERTIFICATE-----\nTm90IGEgY2VydGlmaWNhdGUuCg==\n-----END CERTIFICATE-----\n"
    authorized = keys.authorize(keys.client.cert, bad, keys.second_client.cert, into=tmp_path / "authorized.crt")
    server = site.server(*_flags(keys.server, authorized))
    warnings = [line for line in server.stderr.splitlines() if "WARNING" in line]
    assert [f"block 2 of {authorized}" in line for line in warnings] == [True]
    before, after = (_remote(server, keys.server.cert, pair) for pair in (keys.client, keys.second_client))
    _assert_shared(site, before, after)
