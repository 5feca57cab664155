"""Clients of BuildStream 1.0 and 1.1 push, over a pipe and over a real ``sshd``; real ``ostree`` judges what came of it."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from system.build_site import BuildSite
from system.ostree_push_simulator import Command, Order, Outcome, Pusher, info, message, tar_of, update
from system.ostree_repo import LARGE_BYTES, Product, Puller, assert_sound, closure, make_product, refs_of
from system.ostree_site import (
    BIN,
    RECEIVE,
    force_command,
    new_repo,
    ostree_url,
    serve,
    through_pipe,
    through_ssh,
)
from system.ssh_server import SshServer

Carrier = Callable[[Path], Pusher]
WHOLE = (Command.INFO, Command.STATUS, Command.DONE)


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> list[Product]:
    """Four products; they have some objects in common."""
    directory = tmp_path_factory.mktemp("products")
    return [make_product(directory, f"element{number}", seed=number) for number in range(4)]


@pytest.fixture
def product(products: list[Product]) -> Product:
    return products[0]


class Home:
    """The home of the user ``artifacts`` with a repository in it, and the ``sshd`` that leads there."""

    def __init__(self, site: BuildSite) -> None:
        self.path = site.place("home")
        self.path.mkdir()
        self.repo = self.path / "artifacts"
        new_repo(site).rename(self.repo)
        user = subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()
        self.sshd = SshServer(site.place("sshd"), force_command(user), home=self.path, bin_directory=BIN)


@pytest.fixture
def home(site: BuildSite) -> Iterator[Home]:
    home = Home(site)
    yield home
    home.sshd.stop()


def tar(site: BuildSite, product: Product, tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    return tar_of(closure(product.repo, product.refs, site.place("sent")), tar_format=tar_format)


def push(site: BuildSite, pusher: Pusher, product: Product, tar_format: int = tarfile.PAX_FORMAT) -> Outcome:
    """What a client does: it asks, then it pushes both refs."""
    probed = pusher.probe()
    assert (probed.said, probed.status) == ((Command.INFO,), 0), probed
    return pusher.push(dict.fromkeys(product.refs, product.commit), tar(site, product, tar_format))


def assert_served(site: BuildSite, repo: Path, *products: Product) -> None:
    """All of it is listed, can be pulled from our server, and is what was built."""
    assert_sound(repo)
    client = Puller(site.place("client"), ostree_url(serve(site, repo, "--prefix", "/artifacts")))
    assert client.remote_refs() == {ref for product in products for ref in product.refs}
    for product in products:
        for ref in product.refs:
            client.pull(ref)
        assert client.checkout(product.refs[0], site.place("checkout")) == product.manifest


# -- over a pipe ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize(
    "tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT], ids=["PAX", "GNU", "USTAR"]
)
def test_the_first_push_to_a_new_cache_is_there_for_all(
    site: BuildSite, product: Product, order: Order, tar_format: int
) -> None:
    repo = new_repo(site)
    outcome = push(site, through_pipe(repo, order=order), product, tar_format)
    assert (outcome.said, outcome.status) == (WHOLE, 0), outcome
    assert_served(site, repo, product)


def test_who_only_asks_is_answered_at_once_and_nothing_changes(site: BuildSite) -> None:
    repo = new_repo(site)
    before = _files(repo)
    outcome = through_pipe(repo).probe()
    assert (outcome.said, outcome.status, outcome.stderr) == ((Command.INFO,), 0, "")
    assert b"https://cache.example.org/artifacts\0" in outcome.answers[0]
    assert _files(repo) == before


def test_the_same_push_twice_succeeds_twice(site: BuildSite, product: Product) -> None:
    repo = new_repo(site)
    for _ in range(2):
        assert push(site, through_pipe(repo), product).is_done
    assert_served(site, repo, product)


def test_the_last_push_of_a_ref_counts(site: BuildSite, products: list[Product]) -> None:
    repo, (ref, _) = new_repo(site), products[0].refs
    for product in products[:2]:
        assert through_pipe(repo).push({ref: product.commit}, tar(site, product)).is_done
    assert refs_of(repo) == {ref: products[1].commit}
    assert_sound(repo)


def test_a_repository_that_the_old_receiver_filled_is_taken_as_it_is(site: BuildSite, products: list[Product]) -> None:
    old = make_product(site.place("old"), "old", seed=9)
    leftover = old.repo / "tmp" / "bst-push-abandoned"
    leftover.mkdir(parents=True)
    (leftover / "half").write_bytes(b"half")
    assert push(site, through_pipe(old.repo), products[0]).is_done
    assert_served(site, old.repo, old, products[0])


@pytest.mark.parametrize("cut", ["in the header", "in the middle", "before the end"])
def test_a_push_that_breaks_off_leaves_nothing_behind(site: BuildSite, product: Product, cut: str) -> None:
    repo = new_repo(site)
    before = _files(repo)
    sent = tar(site, product)
    kept = {"in the header": 100, "in the middle": len(sent) // 2, "before the end": len(sent) - 512}[cut]
    refs = dict.fromkeys(product.refs, product.commit)
    outcome = through_pipe(repo).say(info(1, {}), update(refs), message(Command.PUTOBJECTS), sent[:kept])
    assert not outcome.is_done
    assert outcome.status != 0
    assert "Traceback" not in outcome.stderr
    assert _files(repo) == before
    assert push(site, through_pipe(repo), product).is_done


def test_without_a_url_to_pull_from_it_is_one_sentence_and_status_2(site: BuildSite) -> None:
    ended = subprocess.run([RECEIVE, new_repo(site)], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert "--pull-url" in ended.stderr


# -- over ssh -----------------------------------------------------------------------------------------------------------------


def test_a_push_over_ssh_is_there_for_all(site: BuildSite, home: Home, product: Product) -> None:
    outcome = push(site, through_ssh(home.sshd), product)
    assert (outcome.said, outcome.status) == (WHOLE, 0), f"{outcome}\n{home.sshd.log}"
    assert_served(site, home.repo, product)


def test_a_large_file_comes_over_ssh_whole(site: BuildSite, home: Home) -> None:
    large = make_product(site.place("large"), "large", large_bytes=LARGE_BYTES, seed=50)
    outcome = push(site, through_ssh(home.sshd), large)
    assert outcome.is_done, f"{outcome}\n{home.sshd.log}"
    assert_served(site, home.repo, large)


def test_four_pushes_at_once_all_arrive(site: BuildSite, home: Home, products: list[Product]) -> None:
    pushers = [(through_ssh(home.sshd), dict.fromkeys(one.refs, one.commit), tar(site, one)) for one in products]
    with ThreadPoolExecutor(len(pushers)) as pool:
        outcomes = list(pool.map(lambda one: one[0].push(one[1], one[2]), pushers))
    assert [outcome.is_done for outcome in outcomes] == [True] * len(products), outcomes
    assert_served(site, home.repo, *products)


def test_what_a_client_asks_for_is_neither_run_nor_believed(site: BuildSite, home: Home, product: Product) -> None:
    trap = home.path / "trap"
    for words in (["touch", str(trap)], ["bst-artifact-receive", "--pull-url", "http://evil", "/tmp"], ["sh"]):
        command = home.sshd.command(*words)
        pipe = subprocess.PIPE
        started = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
        outcome = Pusher(lambda _, started=started: started).probe()  # type: ignore[misc]
        assert outcome.status == 0
        assert b"https://cache.example.org/artifacts\0" in outcome.answers[0]
    assert not trap.exists()
    assert push(site, through_ssh(home.sshd, "/elsewhere/../../etc"), product).is_done
    assert_sound(home.repo)


def test_each_push_is_one_line_that_says_what_and_who(site: BuildSite, home: Home, product: Product) -> None:
    assert push(site, through_ssh(home.sshd), product).is_done
    (line,) = (home.repo / "state" / "millpond" / "pushes").read_text().splitlines()
    key = subprocess.run(
        ["ssh-keygen", "-l", "-f", home.sshd.directory / "client_key.pub"], check=True, capture_output=True, text=True
    )
    fingerprint = key.stdout.split()[1]
    for word in (*product.refs, product.commit, "127.0.0.1", fingerprint, "bytes"):
        assert word in line


def test_who_has_no_key_gets_nowhere(site: BuildSite, home: Home, product: Product) -> None:
    home.sshd.authorized_keys.write_text("")
    outcome = through_ssh(home.sshd).push({product.refs[0]: product.commit}, b"")
    assert outcome.said == ()
    assert outcome.status == 255
    assert refs_of(home.repo) == {}


def _files(repo: Path) -> dict[str, bytes]:
    """All that a client could notice: everything but our own notes, empty directories and locks."""
    ours = repo / "state"
    return {
        str(path.relative_to(repo)): path.read_bytes()
        for path in repo.rglob("*")
        if path.is_file() and not path.is_relative_to(ours) and path.name != ".lock"
    }
