"""Pushes beside an administrator's ``ostree``: whatever runs at the same time, no summary is stale when it is over.

Each round begins some of: a push, another push, ``ostree summary -u``, ``prune``, ``commit``, ``fsck``, a prune of ours.
They start in another order each time, and the kernel decides the rest; what is asserted holds for every order.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from faults.ostree_receiver import assert_true, command, ended, old_repo, receiver, write_push
from unit.ssh.pushing import REF, WEAK, listed, make_artifact, refs

from millpond.protocol.ostree import frames

ROUNDS = 200
"""As many interleavings as were promised."""


def test_no_order_of_pushes_and_administration_leaves_a_stale_summary(tmp_path: Path) -> None:
    chance = random.Random(5)
    repo = old_repo(tmp_path / "repo")
    pushes = [
        write_push(tmp_path / f"push{number}", make_artifact(f"interleaved {number}"), REF, f"project/own/{number}")
        for number in range(6)
    ]
    other = write_push(tmp_path / "other", make_artifact("other"), WEAK)
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("an administrator's")
    administration = [
        ("ostree", "summary", f"--repo={repo}", "-u"),
        ("ostree", "prune", f"--repo={repo}", "--refs-only"),
        ("ostree", "commit", f"--repo={repo}", "-b", "admin/tree", f"--tree=dir={tree}", "-s", "x"),
        ("ostree", "fsck", f"--repo={repo}"),
        ("ostree", "refs", f"--repo={repo}", "--delete", "admin/tree"),
        (sys.executable, "-m", "millpond", "ostree", "prune", "--quota", "1G", str(repo)),
    ]
    for number in range(ROUNDS):
        pushed = [chance.choice(pushes), other][: chance.choice([1, 1, 2])]
        commands = chance.sample(administration, chance.choice([1, 1, 2]))
        starts = [("push", one) for one in pushed] + [("administer", one) for one in commands]
        chance.shuffle(starts)
        running = [(what, one, receiver(repo, one) if isinstance(one, Path) else command(*one)) for what, one in starts]
        for what, one, process in running:
            status, out, said = ended(process)
            if what == "push":
                assert status == 0, said
                assert out.endswith(frames.done()), said
            elif "summary" in one or ("fsck" in one and not any("prune" in other for other in commands)):
                assert status == 0, (number, one, said)  # fsck takes no lock: what a prune removes meanwhile it misses
        assert refs(repo) == listed(repo), (number, starts)
        if number % 20 == 0:
            assert_true(repo)
    assert_true(repo)


def test_four_pushes_at_once_and_the_same_one_twice_are_all_stored(tmp_path: Path) -> None:
    repo = old_repo(tmp_path / "repo")
    for number in range(5):
        artifacts = [make_artifact(f"parallel {number} {one}") for one in range(3)]
        files = [
            write_push(tmp_path / f"push{number}-{one}", artifact, f"project/{number}/{one}", REF)
            for one, artifact in enumerate(artifacts)
        ]
        for process in [receiver(repo, file) for file in [*files, files[0]]]:
            status, out, said = ended(process)
            assert status == 0, said
            assert out.endswith(frames.done())
        assert refs(repo)[REF] in {artifact.commit for artifact in artifacts}
        assert_true(repo)
