"""What this server can do: ``build.bazel.remote.execution.v2.Capabilities`` and ``buildstream.v2.Capabilities``."""

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond._protos.build.bazel.semver import semver_pb2
from millpond._protos.buildstream.v2 import buildstream_pb2 as bst_pb2
from millpond.core import limits
from millpond.wire.calling import decode
from millpond.wire.gate import Gate
from millpond.wire.rpc import Context

SERVICE = re_pb2.DESCRIPTOR.services_by_name["Capabilities"]
BST_SERVICE = bst_pb2.DESCRIPTOR.services_by_name["Capabilities"]


class CapabilitiesServicer:
    """Answers GetCapabilities."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._answer = _capabilities().SerializeToString()

    async def get_capabilities(self, raw: bytes, context: Context) -> bytes:
        """``GetCapabilities``."""
        admission = self._gate.admission()
        principal = context.principal
        request = decode(re_pb2.GetCapabilitiesRequest, raw)
        admission.reader(principal, request.instance_name)
        return self._answer


class BuildStreamCapabilitiesServicer:
    """Tells clients 1.91 to 1.93.4 whether they may push; without an answer they do not use the server at all."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def get_capabilities(self, raw: bytes, context: Context) -> bytes:
        """``GetCapabilities``."""
        admission = self._gate.admission()
        principal = context.principal
        request = decode(bst_pb2.GetCapabilitiesRequest, raw)
        admission.reader(principal, request.instance_name)
        allowed = {"allow_updates": admission.allows_push(principal)}
        answer = bst_pb2.ServerCapabilities(artifact_capabilities=allowed, source_capabilities=allowed)
        return answer.SerializeToString()


def _capabilities() -> re_pb2.ServerCapabilities:
    return re_pb2.ServerCapabilities(
        cache_capabilities=re_pb2.CacheCapabilities(
            digest_functions=[re_pb2.DigestFunction.SHA256],
            action_cache_update_capabilities=re_pb2.ActionCacheUpdateCapabilities(update_enabled=False),
            max_batch_total_size_bytes=limits.ADVERTISED_BATCH_BYTES,
            symlink_absolute_path_strategy=re_pb2.SymlinkAbsolutePathStrategy.ALLOWED,
        ),
        # 2.1 as the lowest would lock out Bazel 4.
        low_api_version=semver_pb2.SemVer(major=2, minor=0),
        high_api_version=semver_pb2.SemVer(major=2, minor=12),
    )
