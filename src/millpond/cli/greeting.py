"""What a server says when it is ready: what is served where, to whom, and what a client has to be told.

The rule: whoever reads only this knows who can write. Nothing here is decided; it is all in the settings.
"""

import socket
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version

from millpond.config.addresses import is_loopback
from millpond.config.settings import Listener, Settings


def greeting(settings: Settings, listeners: Sequence[Listener], quota: str, *, with_configuration: bool) -> str:
    """The start-up text.

    ``listeners`` are the addresses as they turned out to be, those of OSTree last; ``quota`` is what the store found.
    """
    lines = [f"Millpond {version('millpond')}"]
    first = len(listeners) - (0 if settings.ostree is None else len(settings.ostree.listeners))
    listeners, for_ostree = listeners[:first], listeners[first:]
    for listener in listeners:
        lines += [
            f"  {_listening(settings, listener)}",
            *(f"  WARNING: {one}" for one in _warnings(settings, listener)),
        ]
    if listeners:
        lines.append(f"  repository {settings.repo}; quota: {quota}")
    for listener in for_ostree:
        lines += [
            f"  {_listening_for_ostree(settings, listener)}",
            *(f"  WARNING: {one}" for one in _warnings(replace(settings, enable_push=False), listener)),
        ]
    if with_configuration and listeners:
        lines += ["", "To use it, paste this into ~/.config/buildstream.conf (BuildStream 2):", ""]
        lines.append(configuration(settings, listeners[0]))
    elif with_configuration:
        lines += [
            "",
            "To use it, write this into project.conf or ~/.config/buildstream.conf (BuildStream 1.0 and 1.1):",
            "",
        ]
        lines += ["artifacts:", f"  url: {_ostree_url(settings, for_ostree[0])}"]
    return "\n".join(lines) + "\n"


def _listening(settings: Settings, listener: Listener) -> str:
    who = _who(listener)
    what = "pull and push" if settings.enable_push else "pull, nobody may push"
    kind = " (names only: --index-only)" if settings.index_only else ""
    names = ", ".join(name or "(default)" for name in settings.instances)
    return f"listening on {listener.url}: {who} may {what}{kind}; instance names: {names}"


def _listening_for_ostree(settings: Settings, listener: Listener) -> str:
    assert settings.ostree is not None
    url = f"{listener.url}{settings.ostree.path}"
    return f"listening on {url}: {_who(listener)} may pull from the OSTree repository {settings.ostree.repo}"


def _ostree_url(settings: Settings, listener: Listener) -> str:
    assert settings.ostree is not None
    return f"{_client_url(listener)}{settings.ostree.path}"


def _who(listener: Listener) -> str:
    if listener.tls is not None and listener.tls.client_certs is not None:
        return f"whoever has a certificate that {listener.tls.client_certs} knows"
    return "anyone who reaches it"


def _warnings(settings: Settings, listener: Listener) -> list[str]:
    if is_loopback(listener.host):
        return []
    warnings = []
    if listener.tls is None:
        warnings.append(
            "other machines reach this address without TLS: whoever is on the way can read and change what passes; "
            "give it --server-key and --server-cert, or listen on 127.0.0.1"
        )
    if settings.enable_push and (listener.tls is None or listener.tls.client_certs is None):
        warnings.append(
            "anybody who reaches this address can write to the cache that others build from; "
            "give it --client-certs, or leave out --enable-push"
        )
    return warnings


def configuration(settings: Settings, listener: Listener) -> str:
    """What to write into ``buildstream.conf``: the artifact and the source cache, BuildStream 2 syntax.

    File names are absolute: ``bst`` looks for relative ones in whatever directory it is called.
    """
    first = settings.instances[0]
    push = f"    push: {'true' if settings.enable_push else 'false'}"
    server = [
        f"  - url: {_client_url(listener)}",
        *([f"    instance-name: {first}"] if first else []),
        *(["    type: index"] if settings.index_only else []),
        push,
        *_auth(listener),
    ]
    if settings.index_only:
        server += [
            "  # The content is on another server. Write its address here and remove the signs in front:",
            "  # - url: http://storage.example.org:11001",
            "  #   type: storage",
            f"  # {push[2:]}",
        ]
    caches = ["\n".join([f"{cache}:", "  servers:", *server]) for cache in ("artifacts", "source-caches")]
    return "\n\n".join([*_other_instances(settings.instances), *caches])


def _other_instances(instances: Sequence[str]) -> list[str]:
    """How to use the others, as a comment; nothing where there is only one."""
    ways = [f"# for another one write   instance-name: {name}" for name in instances[1:] if name]
    if "" in instances[1:]:
        ways.append("# for the default one leave the line instance-name out")
    if not ways:
        return []
    this = f"the instance {instances[0]}" if instances[0] else "the default instance, which has no name"
    return ["\n".join([f"# This is {this};", *ways])]


def _client_url(listener: Listener) -> str:
    if listener.host not in ("::", "0.0.0.0"):  # noqa: S104 — compared, not bound
        return listener.url
    return f"{'http' if listener.tls is None else 'https'}://{socket.gethostname()}:{listener.port}"


def _auth(listener: Listener) -> list[str]:
    tls = listener.tls
    if tls is None:
        return []
    if tls.server_cert == tls.server_key:
        alone = tls.server_cert.with_name(f"{tls.server_cert.stem}-alone.crt")
        lines = ["    auth:", f"      server-cert: {alone}  # make it: the certificate alone, never the key"]
    else:
        lines = ["    auth:", f"      server-cert: {tls.server_cert}  # on another machine: a copy of it"]
    if tls.client_certs is not None:
        lines += [
            f"      client-key: {tls.client_certs.with_name('client.key')}  # yours, wherever it lies, as an absolute path",
            f"      client-cert: {tls.client_certs.with_name('client.crt')}  # the same; {tls.client_certs.name} knows it",
        ]
    return lines
