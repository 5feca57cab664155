"""Two servers on one REPO, as the old documentation sets them up: one to pull from, one to push to."""

from __future__ import annotations

from system.bst_client import Remote
from system.build_site import BuildSite
from system.file_tree import manifest
from system.project_maker import GREETING


def test_the_pull_server_has_at_once_what_the_push_server_took(site: BuildSite) -> None:
    repo, project = site.place("repo"), site.project()
    pull, push = site.classic_server(repo=repo), site.classic_server("--enable-push", repo=repo)
    reader = site.client(artifacts=[Remote(url=pull.url)])
    artifact = site.client(artifacts=[Remote(url=push.url, push=True)]).build(project, GREETING)
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
