"""Clients of every generation, one after the other: what they push comes back to them, every byte of it the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from system.bst_client import Remote
from system.build_site import BuildSite
from system.old_clients import ARTIFACTS, EVERYBODY, Release, despite_hangs, expected
from system.server_process import Millpond
from system.tls_keys import KeyPair, Keys

RELEASES = [Release(number) for number in EVERYBODY]

every_release = pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.number)


@pytest.fixture(scope="module")
def plain(shared_site: BuildSite) -> Remote:
    return Remote(url=shared_site.server("--enable-push").url, push=True)


@pytest.fixture(scope="module")
def encrypted(shared_site: BuildSite, keys: Keys) -> Callable[[Release], Remote]:
    """For 1.x a server with keys as its documentation has them made, else one that its address knows; one user each."""
    authorized = keys.authorize(keys.client.cert, into=shared_site.place("authorized"))

    @cache
    def server(pair: KeyPair) -> Millpond:
        flags = ["--server-key", pair.key, "--server-cert", pair.cert, "--client-certs", authorized]
        return shared_site.server("--enable-push", *flags)

    def remote(release: Release) -> Remote:
        # casd takes a second to find out where localhost is, for each connection.
        pair, host = (keys.server, "localhost") if release.is_classic else (keys.server_with_names, "127.0.0.1")
        own = {"client_key": keys.client.key, "client_cert": keys.client.cert}
        return Remote(url=server(pair).url_at(host), push=True, server_cert=pair.cert, **own)

    return remote


def _assert_comes_back(site: BuildSite, release: Release, remote: Remote, *, demanding: bool) -> None:
    """Pushed once, not pushed again, pulled after all was forgotten, and laid out as it was."""
    client = site.old_client(release, artifacts=[remote])
    made = client.make(release.project(site.place("project"), demanding=demanding))
    assert (made.outcome.pulls, made.outcome.pushes) == (0, ARTIFACTS)
    assert client.push_again(made).pushes == 0
    client.wipe()
    assert client.bring(made).pulls == ARTIFACTS
    assert client.tree(made) == expected(made.project)


@every_release
@despite_hangs
def test_what_a_client_pushes_comes_back_to_it(site: BuildSite, plain: Remote, release: Release) -> None:
    _assert_comes_back(site, release, plain, demanding=True)


@every_release
@despite_hangs
def test_what_a_client_pushes_with_its_certificate_comes_back_to_it(
    site: BuildSite, encrypted: Callable[[Release], Remote], release: Release
) -> None:
    _assert_comes_back(site, release, encrypted(release), demanding=False)
