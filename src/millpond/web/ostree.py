"""An OSTree repository over HTTP: what clients of BuildStream 1.0 and 1.1 pull from.

The rule: GET and HEAD of published files, and nothing else that could be asked for: no listing, no way out of the
repository (:mod:`millpond.store.ostree.published`), no body with what is not there.
"""

import asyncio
import re
from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

from millpond.store.ostree.published import Published, PublishedFile
from millpond.web.messages import Answer, Body, Request
from millpond.web.pulls import Pulled, Pulls
from millpond.web.ranges import NotSatisfiable, Part, part_of

_NOT_FOUND = Answer(HTTPStatus.NOT_FOUND)
_ONLY_READING = Answer(HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": "GET, HEAD"})
_COMMIT = re.compile(r"objects/([0-9a-f]{2})/([0-9a-f]{62})\.commit", re.ASCII)
_TYPE = {"Content-Type": "application/octet-stream"}


class OstreeHandler:
    """Answers for one repository, below ``prefix``: ``/`` or ``/artifacts``."""

    def __init__(
        self, published: Published, prefix: str, *, pulls: Pulls, before_summary: Callable[[], None] = lambda: None
    ) -> None:
        """``pulls`` hears who fetches what. ``before_summary``: what to do, blocking, before a summary is sent."""
        self._published = published
        self._prefix = prefix.rstrip("/") + "/"
        self._pulls = pulls
        self._before_summary = before_summary

    async def __call__(self, request: Request) -> Answer:
        """The answer to ``request``.

        Raises:
            OSError: a file is there and cannot be read.
        """
        if request.method not in ("GET", "HEAD"):
            return _ONLY_READING
        path = self._path(request.path)
        if path is None:
            return _NOT_FOUND
        file = await asyncio.to_thread(self._open, path, request)
        if file is None:
            return _NOT_FOUND
        try:
            answer = _answer(path, file, request, self._pulls)
        except BaseException:
            file.close()
            raise
        if answer.body is None:
            file.close()
        return answer

    def _path(self, target: str) -> str | None:
        """The path below the repository, decoded once; what is no plain text after that is nothing of ours."""
        try:
            decoded = unquote_to_bytes(target).decode("ascii")
        except UnicodeError:
            return None
        return decoded.removeprefix(self._prefix) if decoded.startswith(self._prefix) else None

    def _open(self, path: str, request: Request) -> PublishedFile | None:
        if path == "summary":
            self._before_summary()
        file = self._published.open(path)
        if file is None or request.method != "GET":
            return file
        commit = _COMMIT.fullmatch(path)
        if commit is not None:
            self._pulls.begin(request.peer, commit[1] + commit[2])
        else:
            self._pulls.go_on(request.peer)
        return file


def _answer(path: str, file: PublishedFile, request: Request, pulls: Pulls) -> Answer:
    headers = {"ETag": f'"{file.version}"', "Accept-Ranges": "bytes", **_TYPE}
    if not path.startswith("objects/"):
        headers["Cache-Control"] = "no-cache"  # a proxy must ask each time: the summary is always true
    if _names_version(request.headers.get("if-none-match"), headers["ETag"]):
        return Answer(HTTPStatus.NOT_MODIFIED, {name: headers[name] for name in headers if name != "Content-Type"})
    try:
        part = part_of(_range(request, headers["ETag"]), file.size_bytes)
    except NotSatisfiable:
        return Answer(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{file.size_bytes}"})
    status = HTTPStatus.OK
    if part is not None:
        status = HTTPStatus.PARTIAL_CONTENT
        last = part.offset + part.count - 1
        headers["Content-Range"] = f"bytes {part.offset}-{last}/{file.size_bytes}"
    part = part or Part(0, file.size_bytes)
    if file.content is not None:
        return Answer(status, headers, Body(file, part.offset, part.count, at_hand=True))
    return Answer(status, headers, Body(Pulled(file, pulls, request.peer), part.offset, part.count))


def _range(request: Request, etag: str) -> str | None:
    """What part is asked for, by GET alone (RFC 9110 §14.2), if the condition holds: the very same version (§13.1.5)."""
    if request.method != "GET" or request.headers.get("if-range", etag).strip() != etag:
        return None
    return request.headers.get("range")


def _names_version(header: str | None, etag: str) -> bool:
    """Whether ``If-None-Match`` names what would be sent (RFC 9110 §13.1.2, weak comparison)."""
    if header is None:
        return False
    known = [one.strip().removeprefix("W/") for one in header.split(",")]
    return "*" in known or etag in known
