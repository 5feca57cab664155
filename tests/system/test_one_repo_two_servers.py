"""Two servers on one REPO, as the old documentation sets them up: one to pull from, one to push to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from system.bst_client import Remote
from system.build_site import BuildSite
from system.file_tree import manifest
from system.project_maker import GREETING
from system.tls_keys import Keys


def test_the_pull_server_has_at_once_what_the_push_server_took(site: BuildSite, keys: Keys, tmp_path: Path) -> None:
    repo, project = site.place("repo"), site.project()
    authorized = keys.authorize(keys.client.cert, into=tmp_path / "authorized.crt")
    own = ["--server-key", keys.server.key, "--server-cert", keys.server.cert]
    pull = site.classic_server(*own, repo=repo)
    push = site.classic_server(*own, "--client-certs", authorized, "--enable-push", repo=repo)

    trust = Remote(url=pull.url_at("localhost"), server_cert=keys.server.cert)
    mine = {"client_key": keys.client.key, "client_cert": keys.client.cert}
    reader = site.client(artifacts=[trust])
    writer = site.client(artifacts=[replace(trust, url=push.url_at("localhost"), push=True, **mine)])
    artifact = writer.build(project, GREETING)
    assert manifest(reader.fetch(artifact)) == manifest(project.files(GREETING))


def test_two_push_servers_have_at_once_what_the_other_took(site: BuildSite) -> None:
    repo = site.place("repo")
    classic, serve = site.classic_server("--enable-push", repo=repo), site.server("--enable-push", repo=repo)
    for taking, giving in [(classic, serve), (serve, classic)]:
        project = site.project()
        (project.files(GREETING) / "hello.txt").write_text(f"through {taking.url}\n")
        artifact = site.client(artifacts=[Remote(url=taking.url, push=True)]).build(project, GREETING)
        reader = site.client(artifacts=[Remote(url=giving.url)])
        assert manifest(reader.fetch(artifact)) == manifest(project.files(GREETING))


def test_the_pull_server_refuses_a_push_and_the_build_goes_on(site: BuildSite) -> None:
    repo, project = site.place("repo"), site.project()
    pull = site.classic_server(repo=repo)
    site.classic_server("--enable-push", repo=repo)
    outcome = site.client(artifacts=[Remote(url=pull.url, push=True)]).run("build", GREETING, project=project)
    assert "Failed to initialize remote" in outcome.output
    assert outcome.pushed_to == []
