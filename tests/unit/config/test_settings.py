"""Settings survive the way from the supervisor to a worker."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path

import pytest

from millpond.config.handover import News, Report
from millpond.config.settings import Listener, LogLevel, OstreeSettings, Settings, TlsFiles
from millpond.config.sizes import Quota

PLAIN = Settings(repo=Path("/repo"), listeners=(Listener("127.0.0.1", 11001),))
FULL = Settings(
    repo=Path("/with space and ü"),
    listeners=(
        Listener("::", 1),
        Listener("cache.example", 2, TlsFiles(Path("/key"), Path("/cert"))),
        Listener("10.0.0.1", 3, TlsFiles(Path("/key"), Path("/cert"), Path("/clients"))),
    ),
    instances=("", "main", "a/b"),
    enable_push=True,
    index_only=True,
    foreign=False,
    quota=Quota(80.5, is_percent=True),
    reserve=Quota(5, is_percent=True),
    head_room_min_bytes=2 * 10**9,
    head_room_max_bytes=10**10,
    pin_share=0.25,
    warn_age_ms=1,
    scrub_days=1,
    scrub_rate_bytes=1,
    workers=7,
    log_level=LogLevel.TRACE,
    drain_seconds=1.5,
    ostree=OstreeSettings(Path("/ostree"), (Listener("::", 4, TlsFiles(Path("/key"), Path("/cert"))),), "/artifacts"),
)
UNPRINTABLE = Settings(repo=Path(os.fsdecode(b"/latin-\xe9\n")), listeners=())


def test_the_full_example_leaves_nothing_at_its_default() -> None:
    assert [field.name for field in fields(Settings) if getattr(FULL, field.name) == getattr(PLAIN, field.name)] == []


@pytest.mark.parametrize("settings", [PLAIN, FULL, UNPRINTABLE], ids=["plain", "full", "unprintable"])
def test_settings_arrive_as_they_were_sent(settings: Settings) -> None:
    line = settings.to_json()
    assert "\n" not in line
    assert line.isascii()
    assert Settings.from_json(line) == settings


def test_nothing_can_be_written_unless_it_was_asked_for() -> None:
    assert not PLAIN.enable_push


def test_what_is_left_to_others_is_what_was_asked_for_or_little_on_small_disks() -> None:
    assert PLAIN.reserve_bytes(10**9) == 50_000_000
    assert PLAIN.reserve_bytes(10**12) == 2 * 10**9
    assert replace(PLAIN, head_room_min_bytes=7).reserve_bytes(10**12) == 7
    assert replace(PLAIN, reserve=Quota(0), head_room_min_bytes=7).reserve_bytes(10**12) == 0
    assert replace(PLAIN, reserve=Quota(1, is_percent=True)).reserve_bytes(10**12) == 10**10


def test_a_listener_is_written_as_grpc_and_people_write_it() -> None:
    assert Listener("::1", 80).address == "[::1]:80"
    assert Listener("localhost", 80).url == "http://localhost:80"
    assert Listener("::", 80, TlsFiles(Path("k"), Path("c"))).url == "https://[::]:80"


@pytest.mark.parametrize(
    "report",
    [
        Report(News.OPENING),
        Report(News.READY, "50 GB (set here)"),
        Report(News.REFUSED, "the repository is a file: name a directory"),
    ],
    ids=str,
)
def test_a_report_arrives_as_it_was_sent(report: Report) -> None:
    assert Report.parse(report.line()) == report


def test_a_report_is_one_line_and_written_whole() -> None:
    line = Report(News.FAILED, "a\nb " + "ü" * 10_000).line()
    assert line.count(b"\n") == 1
    assert len(line) <= 4096  # PIPE_BUF: more could be interleaved or cut
    assert Report.parse(line).sentence.startswith("a b ü")
