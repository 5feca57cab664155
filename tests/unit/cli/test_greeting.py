"""Whoever reads only the start-up text knows who can write, and what to tell a client."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from millpond.cli.greeting import configuration, greeting
from millpond.config.settings import Listener, OstreeSettings, Settings, TlsFiles

TLS = TlsFiles(Path("/keys/server.key"), Path("/keys/server.crt"))
MUTUAL = replace(TLS, client_certs=Path("/keys/authorized.crt"))
HERE = Listener("127.0.0.1", 11001)
OUTSIDE = Listener("::", 11001)
READ_ONLY = Settings(repo=Path("/srv/cache"), listeners=())
PUSH = replace(READ_ONLY, enable_push=True)


def text(settings: Settings, *listeners: Listener) -> str:
    return greeting(settings, listeners, "50 GB (set here)", with_configuration=False)


def test_each_listener_has_a_line_that_says_who_may_do_what() -> None:
    lines = text(replace(PUSH, instances=("", "main")), HERE, replace(OUTSIDE, tls=MUTUAL)).splitlines()
    (here, outside) = (line.strip() for line in lines if "listening on" in line)
    assert here == (
        "listening on http://127.0.0.1:11001: anyone who reaches it may pull and push; instance names: (default), main"
    )
    assert outside == (
        "listening on https://[::]:11001: whoever has a certificate that /keys/authorized.crt knows may pull and push; "
        "instance names: (default), main"
    )
    assert "may pull, nobody may push" in text(READ_ONLY, HERE)


def test_the_repository_and_its_quota_are_named() -> None:
    assert "repository /srv/cache; quota: 50 GB (set here)\n" in text(PUSH, HERE)


@pytest.mark.parametrize(
    ("settings", "listener", "warnings"),
    [
        (PUSH, HERE, []),
        (PUSH, Listener("::1", 1), []),
        (READ_ONLY, OUTSIDE, ["without TLS"]),
        (PUSH, OUTSIDE, ["without TLS", "can write"]),
        (READ_ONLY, replace(OUTSIDE, tls=TLS), []),
        (PUSH, replace(OUTSIDE, tls=TLS), ["can write"]),
        (PUSH, replace(OUTSIDE, tls=MUTUAL), []),
    ],
)
def test_what_is_open_to_others_is_a_warning(settings: Settings, listener: Listener, warnings: list[str]) -> None:
    found = [line for line in text(settings, listener).splitlines() if "WARNING" in line]
    assert len(found) == len(warnings)
    assert all(word in line for word, line in zip(warnings, found, strict=True))


def test_the_configuration_is_for_both_caches() -> None:
    assert configuration(PUSH, HERE) == (
        "artifacts:\n  servers:\n  - url: http://127.0.0.1:11001\n    push: true\n\n"
        "source-caches:\n  servers:\n  - url: http://127.0.0.1:11001\n    push: true"
    )


def test_the_configuration_says_what_the_client_needs_and_no_more() -> None:
    settings = replace(READ_ONLY, instances=("main",), index_only=True)
    lines = configuration(settings, replace(OUTSIDE, tls=MUTUAL)).splitlines()
    assert lines[2:14] == [
        f"  - url: https://{socket.gethostname()}:11001",
        "    instance-name: main",
        "    type: index",
        "    push: false",
        "    auth:",
        "      server-cert: /keys/server.crt  # on another machine: a copy of it",
        "      client-key: /keys/client.key  # yours, wherever it lies, as an absolute path",
        "      client-cert: /keys/client.crt  # the same; authorized.crt knows it",
        "  # The content is on another server. Write its address here and remove the signs in front:",
        "  # - url: http://storage.example.org:11001",
        "  #   type: storage",
        "  #   push: false",
    ]


def test_every_file_is_named_by_an_absolute_path() -> None:
    for tls in (TLS, MUTUAL, replace(MUTUAL, server_cert=TLS.server_key)):
        lines = configuration(PUSH, replace(HERE, tls=tls)).splitlines()
        assert all(
            line.split(": ")[1].startswith("/") for line in lines if line.startswith("      ") and "type" not in line
        )


def test_what_is_commented_out_becomes_a_server_by_removing_the_signs() -> None:
    lines = configuration(replace(PUSH, index_only=True), HERE).splitlines()
    commented = [line for line in lines[: lines.index("source-caches:")] if line.startswith("  # ")]
    assert [line.replace("# ", "", 1) for line in commented[1:]] == [
        "  - url: http://storage.example.org:11001",
        "    type: storage",
        "    push: true",
    ]


def test_of_several_instances_the_first_is_configured_and_the_others_are_explained() -> None:
    assert configuration(replace(PUSH, instances=("main", "", "b")), HERE).startswith(
        "# This is the instance main;\n"
        "# for another one write   instance-name: b\n"
        "# for the default one leave the line instance-name out\n"
        "\n"
        "artifacts:\n  servers:\n  - url: http://127.0.0.1:11001\n    instance-name: main\n"
    )
    assert configuration(replace(PUSH, instances=("", "b")), HERE).startswith(
        "# This is the default instance, which has no name;\n# for another one write   instance-name: b\n\nartifacts:"
    )
    assert "#" not in configuration(replace(PUSH, instances=("main",)), HERE)


def test_a_private_key_is_never_what_clients_are_told_to_copy() -> None:
    both = TlsFiles(Path("/keys/both.pem"), Path("/keys/both.pem"))
    assert "both.pem" not in configuration(PUSH, replace(HERE, tls=both))


OSTREE = OstreeSettings(Path("/srv/artifacts"), (Listener("::", 8080),), "/artifacts")


def test_an_ostree_repository_beside_the_cache_has_a_line_of_its_own() -> None:
    lines = text(replace(PUSH, ostree=OSTREE), HERE, Listener("::", 8080, MUTUAL)).splitlines()
    (line,) = (line.strip() for line in lines if "OSTree" in line)
    assert line == (
        "listening on https://[::]:8080/artifacts: whoever has a certificate that /keys/authorized.crt knows may pull "
        "from the OSTree repository /srv/artifacts"
    )


def test_an_ostree_repository_alone_is_all_that_is_named_and_its_url_is_printed_to_be_pasted() -> None:
    alone = Settings(repo=OSTREE.repo, listeners=(), workers=0, ostree=OSTREE)
    said = greeting(alone, [Listener("::", 8080)], "", with_configuration=True)
    assert "quota" not in said
    assert said.count("WARNING") == 1
    assert said.endswith(f"\n\nartifacts:\n  url: http://{socket.gethostname()}:8080/artifacts\n")
