"""HTTP/1.1 as pulling clients use it, and as people use it who do not mean well."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from http import HTTPStatus
from pathlib import Path

import pytest
from contract.http_site import Peer, run, serving

from millpond.core import limits
from millpond.web.messages import Answer, Body, Request
from millpond.web.messages import Peer as WhoAsks

HEX = "ab" * 32
COMMIT = f"objects/{HEX[:2]}/{HEX[2:]}.commit"
FILE = f"objects/{HEX[:2]}/{HEX[2:]}.filez"
REF = f"refs/heads/project/element/{HEX}"
LARGE = os.urandom(3 * limits.HTTP_CHUNK_BYTES + 17)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    root = tmp_path / "repo"
    files = {
        "config": b"[core]\nmode=archive-z2\n",
        "summary": b"summary",
        REF: HEX.encode(),
        COMMIT: b"c",
        FILE: LARGE,
    }
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


class Immovable:
    """A body that never ends, for peers that do not take it."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    def read(self, offset: int, count: int) -> bytes:
        return bytes(count)

    def close(self) -> None:
        self.closed.set()


# -- what clients do ------------------------------------------------------------------------------------------------------


def test_files_are_got_one_after_the_other_on_one_connection(repo: Path) -> None:
    async def story() -> None:
        async with serving(repo) as site:
            peer = await site.peer()
            assert (await peer.get("/summary")).body == b"summary"
            assert (await peer.get("/" + FILE)).body == LARGE
            assert (await peer.get("/" + REF)).body == HEX.encode()

    run(story)


def test_what_is_absent_has_no_body_and_the_connection_goes_on(repo: Path) -> None:
    async def story() -> None:
        async with serving(repo) as site:
            peer = await site.peer()
            for path in ("/summary.sig", "/", "/objects/", f"/deltas/{'a' * 2}/{'b' * 41}/superblock"):
                reply = await peer.get(path)
                assert (reply.status, reply.headers["content-length"], reply.body) == (404, "0", b"")
            assert (await peer.get("/summary")).status == 200

    run(story)


def test_head_says_what_get_would_without_sending_it(repo: Path) -> None:
    async def story() -> None:
        async with serving(repo) as site:
            peer = await site.peer()
            for path in ("/" + FILE, "/summary", "/summary.sig"):
                got, said = await peer.get(path), await peer.get(path, method="HEAD")
                ignored = {"date"}
                assert said.status == got.status
                assert {k: v for k, v in said.headers.items() if k not in ignored} == {
                    k: v for k, v in got.headers.items() if k not in ignored
                }

    run(story)


def test_an_offer_to_change_to_http_2_is_ignored(repo: Path) -> None:
    async def story() -> None:
        async with serving(repo) as site:
            peer = await site.peer()
            offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")
            for _ in range(2):
                assert (await peer.get("/summary", *offer)).body == b"summary"

    run(story)


def test_requests_may_be_sent_ahead(repo: Path) -> None:
    async def story() -> None:
        async with serving(repo) as site:
            peer = await site.peer()
            peer.send(b"GET /summary HTTP/1.1\r\nHost: a\r\n\r\nGET /none HTTP/1.1\r\nHost: a\r\n\r\n" * 50)
            assert [(await peer.reply()).status for _ in range(100)] == [200, 404] * 50

    run(story)


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=-17", slice(-17, None)),
        (f"bytes={limits.HTTP_CHUNK_BYTES - 1}-", slice(limits.HTTP_CHUNK_BYTES - 1, None)),
        (f"bytes=5-{10 * len(LARGE)}", slice(5, None)),
    ],
)
def test_a_range_is_answered_with_that_part(repo: Path, asked: str, sent: slice) -> None:
    async def story() -> None:
        async with serving(repo) as site:
            reply = await (await site.peer()).get("/" + FILE, f"Range: {asked}")
            first, last, _ = sent.indices(len(LARGE))
            assert reply.status == 206
            assert reply.headers["content-range"] == f"bytes {first}-{last - 1}/{len(LARGE)}"
            assert reply.body == LARGE[sent]

    run(story)


def test_a_range_beyond_the_end_says_how_much_there_is(repo: Path) -> None:
    async def story() -> None:
        async with serving(repo) as site:
            reply = await (await site.peer()).get("/summary", "Range: bytes=7-")
            assert (reply.status, reply.headers["content-range"], reply.body) == (416, "bytes */7", b"")

    run(story)


def test_a_range_counts_only_for_get_and_for_the_version_that_was_meant(repo: Path) -> None:
    async def story() -> None:
        async with serving(repo) as site:
            peer = await site.peer()
            etag = (await peer.get("/summary")).headers["etag"]
            assert (await peer.get("/summary", "Range: bytes=0-1", f"If-Range: {etag}")).body == b"su"
            assert (await peer.get("/summary", "Range: bytes=0-1", 'If-Range: "other"')).body == b"summary"
            assert (await peer.get("/summary", "Range: bytes=0-1", method="HEAD")).status == 200

    run(story)


def test_who_has_this_version_need_not_get_it_again(repo: Path) -> None:
    async def story() -> None:
        async with serving(repo) as site:
            peer = await site.peer()
            etag = (await peer.get("/summary")).headers["etag"]
            for known in (etag, f'"other", W/{etag}', "*"):
                reply = await peer.get("/summary", f"If-None-Match: {known}")
                assert (reply.status, reply.body) == (304, b"")
            (repo / "new").write_bytes(b"SUMMARY")
            (repo / "new").replace(repo / "summary")
            assert (await peer.get("/summary", f"If-None-Match: {etag}")).body == b"SUMMARY"

    run(story)


def test_no_proxy_keeps_what_changes(repo: Path) -> None:
    async def story() -> None:
        async with serving(repo) as site:
            peer = await site.peer()
            for path, kept in (("/summary", True), ("/" + REF, True), ("/config", True), ("/" + FILE, False)):
                assert ((await peer.get(path)).headers.get("cache-control") == "no-cache") is kept

    run(story)


def test_a_prefix_is_all_that_is_served(repo: Path) -> None:
    async def story() -> None:
        async with serving(repo, prefix="/artifacts") as site:
            peer = await site.peer()
            wanted = {"/artifacts/summary": 200, "http://x/artifacts/summary?a=b": 200, "/artifacts/%73ummary": 200}
            others = (
                "/summary",
                "/artifacts",
                "/artifacts/",
                "/artifactssummary",
                "/artifacts//summary",
                "//artifacts/summary",
            )
            for path, status in (wanted | dict.fromkeys(others, 404)).items():
                assert (await peer.get(path)).status == status, path

    run(story)


def test_what_is_pulled_is_noted_and_what_is_only_looked_at_is_not(repo: Path) -> None:
    async def story() -> None:
        async with serving(repo) as site:
            peer = await site.peer()
            await peer.get("/" + COMMIT, method="HEAD")
            await peer.get("/" + COMMIT.replace("ab", "cd"))
            assert site.pulled == []
            await peer.get("/" + COMMIT)
            assert site.pulled == [HEX]

    run(story)


# -- what others do -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PROPFIND", "CONNECT", "TRACE"])
def test_only_reading_is_offered(repo: Path, method: str) -> None:
    async def story() -> None:
        async with serving(repo) as site:
            reply = await (await site.peer()).get("/summary", method=method)
            assert (reply.status, reply.headers["allow"], reply.body) == (405, "GET, HEAD", b"")

    run(story)
    assert (repo / "summary").read_bytes() == b"summary"


@pytest.mark.parametrize("framing", ["Content-Length: 1000000000000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_a_body_is_not_waited_for(repo: Path, method: str, framing: str) -> None:
    async def story() -> None:
        async with serving(repo) as site:
            peer = await site.peer()
            reply = await peer.get("/summary", framing, "Expect: 100-continue", method=method)
            assert reply.status == (405 if method == "PUT" else 200)
            assert reply.headers["connection"] == "close"
            assert await peer.is_closed()

    run(story)


@pytest.mark.parametrize(
    "path",
    [
        "/../outside",
        "/%2e%2e/outside",
        "/refs/heads/..%2f..%2f..%2foutside",
        "/refs/heads/%2e%2e/%2e%2e/%2e%2e/outside",
        "/refs%2fheads/../../../outside",
        "/%252e%252e/outside",
        "/..\\outside",
        "/%5c..%5coutside",
        "/summary%00",
        "/%00",
        "/summary%0d%0aX:y",
        "/%ff%fe",
        "/%",
        "//outside",
        "/./summary",
        "/state/uses",
        "/.lock",
        "http://cache/../outside",
        "file:///etc/passwd",
        "*",
        "/" + "a" * 8000,
        "/" + "a/" * 4000,
        "/refs/heads/" + "x" * 5000,
    ],
)
def test_no_path_leads_out_of_the_repository(repo: Path, path: str) -> None:
    (repo.parent / "outside").write_bytes(b"secret")

    async def story() -> None:
        async with serving(repo) as site:
            reply = await (await site.peer()).get(path)
            assert (reply.status, reply.body) == (404, b"")

    run(story)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600), 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 405),
        (b"GET /summary HTTP/1.1\r\n\r\n", 400),
        (b"GET /sum mary HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET /" + b"a" * 2 * limits.HTTP_HEADER_BYTES + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * limits.HTTP_HEADER_BYTES, 431),
    ],
)
def test_what_is_no_request_is_refused_and_ends_the_connection(repo: Path, said: bytes, status: int) -> None:
    async def story() -> None:
        async with serving(repo) as site:
            peer = await site.peer()
            peer.send(said)
            reply = await peer.reply()
            assert (reply.status, reply.body) == (status, b"")
            assert await peer.is_closed()
            assert (await (await site.peer()).get("/summary")).status == 200

    run(story)


@pytest.mark.parametrize("begun", [b"", b"GET /summary HT", b"GET /summary HTTP/1.1\r\nHost: a\r\nX"])
def test_who_says_nothing_or_not_all_of_it_is_not_waited_for(
    repo: Path, begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HTTP_REQUEST_SECONDS", 0.05)

    async def story() -> None:
        async with serving(repo) as site:
            peer = await site.peer()
            peer.send(begun)
            assert await peer.is_closed()

    run(story)


def test_who_sends_a_request_drop_by_drop_is_not_waited_for(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HTTP_REQUEST_SECONDS", 0.1)

    async def story() -> None:
        async with serving(repo) as site:
            peer = await site.peer()
            closed = asyncio.create_task(peer.is_closed())
            peer.send(b"GET /summary HTTP/1.1\r\n")
            while not closed.done():
                peer.send(b"X: y\r\n")
                await asyncio.sleep(0.01)

    run(story)


def test_who_does_not_take_what_was_asked_for_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HTTP_STALL_SECONDS", 0.1)

    async def story() -> None:
        endless = Immovable()

        async def handler(request: Request) -> Answer:
            return Answer(HTTPStatus.OK, body=Body(endless, 0, 1 << 40, at_hand=True))

        async with serving(handler) as site:
            peer = await site.peer()
            peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await endless.closed.wait()

    run(story)


def test_who_waits_longest_makes_room_for_a_newcomer(repo: Path) -> None:
    async def story() -> None:
        async with serving(repo, connections=3) as site:
            first, second, third = [await _known(await site.peer()) for _ in range(3)]
            await first.get("/summary")
            fourth = await site.peer()
            assert (await fourth.get("/summary")).status == 200
            assert await second.is_closed()
            for kept in (first, third, fourth):
                assert (await kept.get("/summary")).status == 200

    run(story)


def test_who_is_being_answered_makes_room_for_nobody() -> None:
    async def story() -> None:
        go_on = asyncio.Event()

        async def handler(request: Request) -> Answer:
            await go_on.wait()
            return Answer(HTTPStatus.NOT_FOUND)

        async with serving(handler, connections=1) as site:
            peer = await site.peer()
            asked = asyncio.create_task(peer.get("/"))
            while next(iter(site.server._peers.values()), None) is None or any(
                one.waiting_since is not None for one in site.server._peers.values()
            ):
                await asyncio.sleep(0.001)
            assert await (await site.peer()).is_closed()
            go_on.set()
            assert (await asked).status == 404

    run(story)


async def _known(peer: Peer) -> Peer:
    assert (await peer.get("/summary")).status == 200
    return peer


# -- what goes wrong here -------------------------------------------------------------------------------------------------


def test_a_fault_of_ours_is_a_status_without_words_and_one_story_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: Request) -> Answer:
        if request.path == "/disk":
            raise OSError(5, "Input/output error")
        raise KeyError("/secret/path")

    async def story() -> None:
        async with serving(handler) as site:
            peer = await site.peer()
            for path in ("/disk", "/bug"):
                reply = await peer.get(path)
                assert (reply.status, reply.body) == (500, b"")

    run(story)
    disk, bug = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "Input/output error" in disk.getMessage()
    assert disk.exc_info is None
    assert "incident" in bug.getMessage()


def test_a_file_that_ends_too_early_ends_the_connection(repo: Path) -> None:
    class Short(Immovable):
        def read(self, offset: int, count: int) -> bytes:
            return b"x"

    async def story() -> None:
        async def handler(request: Request) -> Answer:
            return Answer(HTTPStatus.OK, body=Body(Short(), 0, 100))

        async with serving(handler) as site:
            peer = await site.peer()
            peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert await peer.reader.read() == b""

    run(story)


def test_stopping_lets_answers_end_and_nobody_else_wait(repo: Path) -> None:
    async def story() -> None:
        go_on = asyncio.Event()
        asked = asyncio.Event()

        async def handler(request: Request) -> Answer:
            asked.set()
            await go_on.wait()
            return Answer(HTTPStatus.NOT_FOUND)

        async with serving(handler) as site:
            idle, busy = await site.peer(), await site.peer()
            answer = asyncio.create_task(busy.get("/"))
            await asked.wait()
            stopping = asyncio.create_task(site.server.stop(20))
            assert await idle.is_closed()
            with pytest.raises(OSError, match=r".*"):
                await site.peer()
            go_on.set()
            reply = await answer
            assert (reply.status, reply.headers["connection"]) == (404, "close")
            await stopping

    run(story)


def test_what_does_not_end_in_time_is_cut_off() -> None:
    async def story() -> None:
        endless = Immovable()

        async def handler(request: Request) -> Answer:
            return Answer(HTTPStatus.OK, body=Body(endless, 0, 1 << 40))

        async with serving(handler) as site:
            peer = await site.peer()
            peer.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await peer.reader.readexactly(1000)
            await site.server.stop(0.05)
            assert endless.closed.is_set()

    run(story)


def test_it_is_known_whether_a_peer_left_by_itself() -> None:
    """So that a pull is over when its client is gone, and not when a connection was closed for other reasons."""
    peers: list[WhoAsks] = []

    async def handler(request: Request) -> Answer:
        peers.append(request.peer)
        return Answer(HTTPStatus.NOT_FOUND)

    async def story() -> None:
        async with serving(handler) as site:
            staying, leaving, saying_so = [await site.peer() for _ in range(3)]
            await staying.get("/")
            await leaving.get("/")
            await saying_so.get("/", "Connection: close")
            await leaving.close()
            assert await saying_so.is_closed()
            while peers[1].connected or peers[2].connected:
                await asyncio.sleep(0.001)
            assert [(peer.connected, peer.left) for peer in peers] == [(True, False), (False, True), (False, False)]
            await staying.get("/")
            assert peers[3] is peers[0]

    run(story)


def test_without_descriptors_nobody_is_lost_who_waits(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept, failures = socket.socket.accept, [OSError(24, "Too many open files")] * 2

    def failing(listening: socket.socket) -> object:
        if failures:
            raise failures.pop()
        return accept(listening)

    async def story() -> None:
        monkeypatch.setattr(socket.socket, "accept", failing)
        async with serving(repo) as site:
            assert (await (await site.peer()).get("/summary")).status == 200
            assert failures == []

    run(story)


def test_an_older_client_is_answered_and_let_go(repo: Path) -> None:
    async def story() -> None:
        async with serving(repo) as site:
            peer = await site.peer()
            peer.send(b"GET /summary HTTP/1.0\r\n\r\n")
            assert (await peer.reply()).body == b"summary"
            assert await peer.is_closed()

    run(story)
