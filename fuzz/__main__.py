"""``python -m fuzz TARGET --seconds N [--seed N]``: random mutations of true inputs.

With ``--atheris`` (``pip install atheris``) the same targets are driven by coverage instead. An input that a target does
not survive is printed as a Python literal, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence

from fuzz.ostree_targets import OSTREE_TARGETS
from fuzz.targets import TARGETS as CAS_TARGETS
from fuzz.targets import Target
from fuzz.wire_targets import WIRE_TARGETS

TARGETS = CAS_TARGETS | OSTREE_TARGETS | WIRE_TARGETS

_INTERESTING = [b"", b"\0", b"\xff", b"\x7f", b"\x80", b"\xff" * 8, b"/", b"..", b"\0" * 8, b"9" * 20, "é".encode()]
_KEPT = 500


def mutate(data: bytes, corpus: Sequence[bytes], chance: random.Random) -> bytes:
    """A few random edits of ``data``."""
    mutated = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 3, 8])):
        at = chance.randint(0, len(mutated))
        end = min(len(mutated), at + chance.choice([0, 1, 1, 2, 8, 64]))
        kind = chance.randrange(6)
        if kind == 0 and at < len(mutated):
            mutated[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            mutated[at:end] = chance.choice(_INTERESTING)
        elif kind == 2:
            mutated[at:end] = chance.randbytes(chance.choice([1, 2, 4, 16]))
        elif kind == 3:
            mutated[at:at] = mutated[at:end] * chance.choice([1, 2, 100])
        elif kind == 4:
            other = chance.choice(corpus)
            begin = chance.randint(0, len(other))
            mutated[at:end] = other[begin : begin + chance.choice([1, 8, 64, 1000])]
        else:
            del mutated[at:]
    return bytes(mutated[:100_000])


def run(target: Target, seconds: float, seed: int) -> int:
    """Fuzz for so long; the number of inputs tried."""
    chance = random.Random(seed)
    corpus = list(target.corpus)
    for data in (*corpus, b""):
        target.fuzz_one(data)
    deadline = time.monotonic() + seconds
    tried = 0
    while time.monotonic() < deadline:
        data = mutate(chance.choice(corpus), corpus, chance)
        try:
            target.fuzz_one(data)
        except Exception:
            print(f"this input was not survived (seed {seed}, number {tried}):\n{data!r}", file=sys.stderr)
            raise
        tried += 1
        if chance.random() < 0.01:  # go on from what was reached, not only from what is true
            corpus.append(data)
            if len(corpus) > _KEPT:
                corpus[chance.randrange(len(target.corpus), len(corpus))] = corpus.pop()
    return tried


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Fuzz one parser.")
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--atheris", action="store_true", help="let coverage choose the inputs")
    arguments = parser.parse_args()
    target = TARGETS[arguments.target]
    if arguments.atheris:
        import atheris

        atheris.Setup([sys.argv[0], f"-max_total_time={int(arguments.seconds)}"], target.fuzz_one)
        atheris.Fuzz()
        return
    seed = random.SystemRandom().randrange(2**32) if arguments.seed is None else arguments.seed
    tried = run(target, arguments.seconds, seed)
    print(f"{arguments.target}: {tried} inputs survived (seed {seed})")


if __name__ == "__main__":
    main()
