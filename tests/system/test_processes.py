"""The real program, two workers: one port, one owner, and nothing left behind."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from system.server_process import Millpond, free_port

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2
from millpond._protos.google.bytestream import bytestream_pb2

DEADLINE_SECONDS = 30
SOON_SECONDS = 10.0
"""What waits for nothing. A quiet machine does it within a second, and what is to be waited for would take 30."""


class Server(Millpond):
    """Ours, with a view of its processes."""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def children(self) -> list[int]:
        return [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if _parent(pid) == self.pid]

    @property
    def workers(self) -> list[int]:
        return [pid for pid in self.children if b"\0worker\0" in _command(pid)]

    @property
    def upkeep(self) -> list[int]:
        return [pid for pid in self.children if b"\0upkeep\0" in _command(pid)]

    def wait(self) -> int:
        return self._process.wait(DEADLINE_SECONDS)

    def await_log(self, text: str) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while text not in self.stderr:
            assert time.monotonic() < deadline, f"no {text!r} in the log of {self}"
            time.sleep(0.01)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    command = ["millpond", "serve", "--enable-push", "--workers", "2", "--listen", "127.0.0.1:0", tmp_path / "repo"]
    running = Server(command, tmp_path / "server.log")
    yield running
    running.kill()


def _parent(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[1])


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _is_serving(port: int) -> bool:
    # Every channel is a connection of its own, so that the kernel may give each to another worker.
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=DEADLINE_SECONDS, wait_for_ready=True
        )
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _await_serving(port: int) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not _is_serving(port):
        assert time.monotonic() < deadline, f"nobody serves on port {port}"
        time.sleep(0.01)


def _start_another(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", *arguments, str(directory)]
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=plain
    )


def _refusal(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, out, err.count("\n")) == (2, "", 1), err
    return err


def test_a_port_in_use_by_us_is_refused_in_one_sentence(server: Server, tmp_path: Path) -> None:
    listen = f"127.0.0.1:{server.port}"
    refusal = _refusal(_start_another(tmp_path / "other", "millpond", "serve", "--listen", listen))
    assert refusal == f"millpond: {listen} is already in use by another program: stop it or choose another port\n"
    # The old command listens on every address, and this is one of them.
    refusal = _refusal(_start_another(tmp_path / "other", "millpond.cli.bst_artifact_server", "-p", str(server.port)))
    assert "is already in use by another program" in refusal
    assert not (tmp_path / "other").exists()
    assert _is_serving(server.port)


def test_a_port_in_use_by_another_program_is_refused_even_if_it_would_share(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0), reuse_port=True)) as other:
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        assert "already in use" in _refusal(_start_another(tmp_path, "millpond", "serve", "--listen", listen))


def test_of_several_servers_started_at_once_one_gets_the_port(tmp_path: Path) -> None:
    listen = f"127.0.0.1:{free_port()}"
    racing = [_start_another(tmp_path / str(n), "millpond", "serve", "--listen", listen) for n in range(4)]
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while sum(process.poll() is None for process in racing) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        losers = [process for process in racing if process.poll() is not None]
        assert len(losers) == 3
        assert all("already in use" in _refusal(process) for process in losers)
    finally:
        for process in racing:
            process.terminate()
            process.communicate()


def test_a_killed_worker_is_started_again_and_the_others_serve_on(server: Server) -> None:
    victim, survivor = server.workers
    os.kill(victim, signal.SIGKILL)
    server.await_log("was ended by signal 9 (SIGKILL); starting it again in 0.1 seconds")
    server.await_log("serves again")
    assert survivor in server.workers
    assert len(server.workers) == 2
    assert all(_is_serving(server.port) for _ in range(8))
    server.stop()


def test_the_port_is_kept_while_every_worker_is_dead(server: Server, tmp_path: Path) -> None:
    for worker in server.workers:
        os.kill(worker, signal.SIGKILL)
    listen = f"127.0.0.1:{server.port}"
    assert "already in use" in _refusal(_start_another(tmp_path / "other", "millpond", "serve", "--listen", listen))
    _await_serving(server.port)


def test_workers_are_gone_soon_after_the_supervisor(server: Server) -> None:
    others = server.children
    assert len(others) == 3  # two workers and upkeep
    os.kill(server.pid, signal.SIGKILL)
    deadline = time.monotonic() + SOON_SECONDS
    while any(_parent(one) for one in others) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(_parent(one) for one in others)


def test_upkeep_is_a_process_without_grpc_that_gives_way_and_is_started_again(server: Server) -> None:
    (victim,) = server.upkeep
    assert "lmdb" in Path(f"/proc/{victim}/maps").read_text()
    assert "cygrpc" not in Path(f"/proc/{victim}/maps").read_text()
    assert os.getpriority(os.PRIO_PROCESS, victim) > os.getpriority(os.PRIO_PROCESS, server.workers[0])
    os.kill(victim, signal.SIGKILL)
    server.await_log("upkeep was ended by signal 9 (SIGKILL); starting it again in 0.1 seconds")
    server.await_log("upkeep works again")
    assert server.upkeep not in ([victim], [])
    server.stop()


def test_one_worker_has_upkeep_beside_it(tmp_path: Path) -> None:
    command = ["millpond", "serve", "--workers", "1", "--listen", "127.0.0.1:0", tmp_path / "repo"]
    server = Server(command, tmp_path / "server.log")
    try:
        assert (len(server.workers), len(server.upkeep)) == (1, 1)
        server.stop()
    finally:
        server.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_connections_do_not_hold_up_the_end(server: Server, number: signal.Signals) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_SECONDS)
        begin = time.monotonic()
        os.kill(server.pid, number)
        assert server.wait() == 0
        assert time.monotonic() - begin < SOON_SECONDS
    assert "Traceback" not in server.stderr


def test_a_running_transfer_holds_up_the_end_until_the_second_signal(server: Server) -> None:
    begun, over = [], False
    name = f"uploads/5c0d3b7a-0000-4000-8000-000000000000/blobs/{'a' * 64}/1000000"

    def requests() -> Iterator[bytestream_pb2.WriteRequest]:
        yield bytestream_pb2.WriteRequest(resource_name=name, data=b"the beginning")
        begun.append(True)
        while not over:
            time.sleep(0.01)

    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        write = channel.stream_unary(
            "/google.bytestream.ByteStream/Write", request_serializer=bytestream_pb2.WriteRequest.SerializeToString
        )
        transfer = write.future(requests())
        while not begun:
            time.sleep(0.01)
        assert _is_serving(server.port)  # by now the first message has arrived as well
        time.sleep(0.2)
        os.kill(server.pid, signal.SIGTERM)
        server.await_log("running transfers get up to 30 s\n")
        time.sleep(1)
        assert server.running
        assert not transfer.done()
        begin = time.monotonic()
        os.kill(server.pid, signal.SIGTERM)
        assert server.wait() == 128 + signal.SIGTERM
        assert time.monotonic() - begin < SOON_SECONDS
        over = True
        transfer.cancel()


def test_descriptors_are_not_limited_below_what_the_machine_allows(server: Server) -> None:
    for pid in [server.pid, *server.workers]:
        (line,) = (line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "open files" in line)
        soft, hard = line.split()[3:5]
        assert soft == hard


def _upload(port: int) -> grpc.StatusCode:
    """Upload a small blob; the status of the call, whose item is then well."""
    data = b"a blob"
    digest = remote_execution_pb2.Digest(hash=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
    request = remote_execution_pb2.BatchUpdateBlobsRequest()
    request.requests.add(digest=digest, data=data)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        update = channel.unary_unary(
            "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs",
            request_serializer=remote_execution_pb2.BatchUpdateBlobsRequest.SerializeToString,
            response_deserializer=remote_execution_pb2.BatchUpdateBlobsResponse.FromString,
        )
        try:
            answer = update(request, timeout=DEADLINE_SECONDS)
        except grpc.RpcError as refusal:
            code: grpc.StatusCode = refusal.code()
            return code
    assert answer.responses[0].status.code == 0
    return grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("head_room", "code"), [("1", grpc.StatusCode.OK), ("8000000T", grpc.StatusCode.RESOURCE_EXHAUSTED)]
)
def test_head_room_is_disk_space_that_is_left_to_others(head_room: str, code: grpc.StatusCode, tmp_path: Path) -> None:
    command = ["millpond.cli.bst_artifact_server", "--port", str(free_port()), "--enable-push"]
    server = Server([*command, "--head-room-min", head_room, tmp_path / "repo"], tmp_path / "server.log")
    try:
        assert _upload(server.port) is code
        server.stop()
        assert server.stderr.endswith("SIGTERM: stopping; running transfers get up to 30 s\nstopped\n")
    finally:
        server.kill()


def test_the_greeting_tells_the_quota_and_where_it_comes_from(tmp_path: Path) -> None:
    def quota_of(*arguments: str) -> str:
        command = ["millpond", "serve", "--listen", "127.0.0.1:0", "--workers", "2", *arguments, tmp_path / "repo"]
        server = Server(command, tmp_path / "server.log")
        try:
            server.stop()
            (quota,) = re.findall(r"; quota: (.*)", server.stdout)
            return str(quota)
        finally:
            server.kill()

    assert re.fullmatch(r"[0-9.]+ [kMGTPE]B \(nine tenths of the free space\)", quota_of())
    assert quota_of("--quota", "50M") == "50 MB (set here)"
    assert quota_of() == "50 MB (kept from before)"


def test_a_share_of_the_disk_that_holds_nothing_is_refused(tmp_path: Path) -> None:
    command = ["millpond", "serve", "--listen", "127.0.0.1:0", "--quota", "0.000000001%"]
    assert "too little: the least quota is 262144 bytes" in _refusal(_start_another(tmp_path / "repo", *command))


def test_whoever_stops_reading_the_start_up_text_stops_nothing(tmp_path: Path) -> None:
    port = free_port()
    process = _start_another(tmp_path / "repo", "millpond", "serve", "--listen", f"127.0.0.1:{port}")
    try:
        assert process.stdout is not None
        process.stdout.close()
        _await_serving(port)
        time.sleep(0.5)
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
    assert process.returncode == 0
