"""What a client is told when names hold all that the quota leaves them."""

from __future__ import annotations

from pathlib import Path

from contract.loopback import LoopbackServer
from contract.rpc_client import Client, message_of, refused

from millpond.names.lmdb_names import LmdbNames


def test_a_push_beyond_what_names_may_hold_is_refused_and_a_pull_goes_on(tmp_path: Path) -> None:
    with LoopbackServer(tmp_path / "repo") as server, Client(server.target) as client:
        (digest,) = client.put(b"content")
        client.call("PushBlob", uris=["urn:first"], blob_digest=message_of(digest))
        names = server.cache.names
        assert isinstance(names, LmdbNames)
        names._consequences._limit_bytes = names.held_bytes
        with refused("RESOURCE_EXHAUSTED", "names hold all of the"):
            client.call("PushBlob", uris=["urn:second"], blob_digest=message_of(digest))
        assert client.call("FetchBlob", uris=["urn:first"]).blob_digest.hash == digest.hash
        with refused("NOT_FOUND"):
            client.call("FetchBlob", uris=["urn:second"])
        client.call("PushBlob", uris=["urn:first"], blob_digest=message_of(digest))  # what takes no more is let through
