"""Pushes, pulls and prune at once, and an administrator at work beside them: what is listed can be had, always."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from system.build_site import BuildSite
from system.millpond_command import millpond
from system.ostree_push_simulator import tar_of
from system.ostree_repo import Product, Puller, assert_sound, closure, make_product, ostree, refs_of
from system.ostree_site import new_repo, ostree_url, serve, through_pipe, until

PRODUCTS = 12
AGAIN = 3
PULLERS = 3
PRUNES = 2
BEFORE, LATE = "before its ref goes", "from a summary that is old by now"
"""When a slow pull begins. In the second case prune is killed in the end, instead of being waited for."""


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> list[Product]:
    directory = tmp_path_factory.mktemp("products")
    return [make_product(directory, f"element{number}", large_bytes=2 << 20, seed=number) for number in range(PRODUCTS)]


@pytest.fixture(scope="module")
def tars(products: list[Product], tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    directory = tmp_path_factory.mktemp("sent")
    return [tar_of(closure(one.repo, one.refs, directory / str(number))) for number, one in enumerate(products)]


class Crowd:
    """Clients that push and pull one after the other until they are told to stop."""

    def __init__(self, site: BuildSite, repo: Path, url: str, products: list[Product], tars: list[bytes]) -> None:
        self._site, self._repo, self._url = site, repo, url
        self._products, self._tars = products, tars
        self._places = threading.Lock()
        self.stopping = threading.Event()
        self.pulled = 0

    def push_for_ever(self) -> int:
        """Every product once, then the last ones again and again; how many pushes there were."""
        pushes = 0
        while not self.stopping.is_set():
            number = pushes if pushes < PRODUCTS else PRODUCTS - 1 - pushes % AGAIN
            product, tar = self._products[number], self._tars[number]
            outcome = through_pipe(self._repo).push(dict.fromkeys(product.refs, product.commit), tar)
            assert outcome.is_done, outcome
            pushes += 1
        return pushes

    def pull_for_ever(self, number: int) -> int:
        """Whatever is listed; how many pulls there were. Each is by a client that has nothing yet."""
        pulls = 0
        while not self.stopping.is_set():
            with self._places:
                place = self._site.place("client")
            client = Puller(place, self._url)
            listed = sorted(client.remote_refs())
            if not listed:
                continue
            ref = listed[(7 * pulls + 5 * number) % len(listed)]
            ended = client.pull(ref, ok=False)
            # Only the summary may say no: a ref may have gone since it was listed.
            assert ended.returncode == 0 or f"No such branch '{ref}'" in ended.stderr, ended.stderr
            if ended.returncode == 0:
                pulls += 1
                ostree("fsck", repo=client.repo)
            shutil.rmtree(place)
        return pulls


def test_no_pull_of_a_listed_ref_fails_while_others_push_and_prune(
    site: BuildSite, products: list[Product], tars: list[bytes]
) -> None:
    repo = new_repo(site)
    crowd = Crowd(site, repo, ostree_url(serve(site, repo)), products, tars)
    with ThreadPoolExecutor(PULLERS + 1) as pool:
        pushing = pool.submit(crowd.push_for_ever)
        pulling = [pool.submit(crowd.pull_for_ever, number) for number in range(PULLERS)]
        try:
            _wait_for(lambda: len(refs_of(repo)) == 2 * PRODUCTS, pushing, *pulling)
            pruned = [json.loads(_prune(repo, "--quota", "15M")) for _ in range(PRUNES)]
        finally:
            crowd.stopping.set()
        assert pushing.result() >= PRODUCTS
        assert sum(one.result() for one in pulling) > PULLERS
    assert sum(len(one["refs"]) for one in pruned) > 0
    assert_sound(repo)
    assert millpond("ostree", "check", repo).status == 0


@pytest.mark.parametrize("begun", [BEFORE, LATE])
def test_a_slow_pull_of_what_has_to_go_comes_to_its_end(
    site: BuildSite, products: list[Product], tars: list[bytes], begun: str
) -> None:
    repo, product = new_repo(site), products[0]
    server = serve(site, repo)
    refs = dict.fromkeys(product.refs, product.commit)
    assert through_pipe(repo).push(refs, tars[0]).is_done
    commit, *others = sorted(_objects(repo), key=lambda path: not path.endswith(".commit"))
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)

    def status(path: str) -> int:
        client.request("GET", f"/{path}")
        answer = client.getresponse()
        answer.read()
        return answer.status

    assert status("summary") == 200
    if begun == BEFORE:
        assert status(commit) == 200
    command = [sys.executable, "-m", "millpond", "ostree", "prune", "--quota", "1", repo]
    pruning = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        until(lambda: not _files(repo / "refs" / "heads"))
        assert status(commit) == 200
        for path in others:
            time.sleep(4 / len(others))  # longer than prune waits for those who ask for nothing
            assert status(path) == 200, path
        assert pruning.poll() is None
        client.close()
        if begun == BEFORE:
            assert pruning.wait(120) == 0
    finally:
        pruning.kill()
        pruning.wait()
    assert_sound(repo)
    assert begun == LATE or _objects(repo) == []


def test_what_is_pulled_from_us_stays_longest(site: BuildSite, products: list[Product], tars: list[bytes]) -> None:
    repo = new_repo(site)
    url = ostree_url(serve(site, repo))
    for product, tar in zip(products[:3], tars[:3], strict=True):
        assert through_pipe(repo).push(dict.fromkeys(product.refs, product.commit), tar).is_done
    Puller(site.place("client"), url).pull(products[0].refs[0])
    _prune(repo, "--quota", "3M")
    assert set(refs_of(repo)) == set(products[0].refs)
    assert_sound(repo)


def test_a_repository_with_a_quota_takes_pushes_for_ever(
    site: BuildSite, products: list[Product], tars: list[bytes]
) -> None:
    repo = site.place("artifacts")
    assert millpond("ostree", "init", "--quota", "12M", repo).status == 0
    for product, tar in zip(products, tars, strict=True):
        outcome = through_pipe(repo).push(dict.fromkeys(product.refs, product.commit), tar)
        assert outcome.is_done, outcome
        assert set(product.refs) <= set(refs_of(repo))
        held = sum(path.stat().st_size for path in (repo / "objects").rglob("*") if path.is_file())
        assert held <= 12_000_000
    assert 0 < len(refs_of(repo)) < 2 * PRODUCTS
    assert_sound(repo)


def test_an_administrator_may_use_ostree_beside_pushes(
    site: BuildSite, products: list[Product], tars: list[bytes]
) -> None:
    repo = new_repo(site)
    crowd = Crowd(site, repo, "", products, tars)
    with ThreadPoolExecutor(1) as pool:
        pushing = pool.submit(crowd.push_for_ever)
        try:
            for _ in range(5):
                ostree("summary", "--update", repo=repo)
                ostree("prune", "--refs-only", repo=repo)
                ostree("fsck", repo=repo)
        finally:
            crowd.stopping.set()
        assert pushing.result() > 0
    assert_sound(repo)


def _files(directory: Path) -> list[Path]:
    """Walked so that directories may go meanwhile."""
    return [Path(place, name) for place, _, names in os.walk(directory) for name in names]


def _objects(repo: Path) -> list[str]:
    return [str(path.relative_to(repo)) for path in _files(repo / "objects")]


def _prune(repo: Path, *options: str) -> str:
    said = millpond("ostree", "prune", *options, "--json", repo)
    assert said.status == 0, said
    return said.output


def _wait_for(question: object, *running: Future[int]) -> None:
    """Until the answer is yes, or one of those who run has failed."""
    assert callable(question)
    while not question():
        for one in running:
            if one.done():
                one.result()
