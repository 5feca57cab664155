"""Every limit of Millpond: its unit in the name, its reason and source beside it.

The rule: a number that bounds what a peer may do stands here and nowhere else.
"""

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

# -- messages -----------------------------------------------------------------------------------------------------

ADVERTISED_BATCH_BYTES = 4 * MIB - 256 * KIB
"""``CacheCapabilities.max_batch_total_size_bytes``. A client fills a request to it, and gRPC's default receive limit
of 4 MiB holds for the *encoded* message: 256 KiB is left for digests and field tags."""

BATCH_BYTES = ADVERTISED_BATCH_BYTES
"""The most data one BatchUpdateBlobs may carry; a batch of exactly this size works (remote_execution.proto,
``BatchUpdateBlobs``)."""

RECEIVE_BYTES = 16 * MIB
"""The largest message accepted. 60 000 digests in one FindMissingBlobs are 4.2 MB, over gRPC's default of 4 MiB."""

ANSWER_BYTES = 4 * MIB
"""The largest message sent, encoded: every gRPC client accepts that much without being configured."""

CHUNK_BYTES = 1 * MIB
"""The unit in which blobs are read, verified and streamed."""

TREE_PAGE_BYTES = 2 * MIB
"""GetTree starts a new response message beyond this much."""

URI_CHARS = 16 * KIB
"""The longest URI or qualifier of an asset."""

URIS = 64
"""The most URIs in one Fetch or Push. BuildStream sends one or two."""

QUALIFIERS = 64
"""The most qualifiers in one Fetch or Push."""

REFERENCES = 100_000
"""The most references one Push may name."""

INSTANCE_CHARS = 255
"""The longest instance name."""

RESOURCE_NAME_CHARS = 2048
"""The longest ByteStream resource name."""

METADATA_BYTES = 32 * KIB
"""The most header bytes of one call."""

# -- peers --------------------------------------------------------------------------------------------------------

STREAMS_PER_CONNECTION = 1024
"""Concurrent calls on one connection; more wait at the client (RFC 9113 §5.1.2)."""

PING_INTERVAL_MS = 5_000
"""Pings this far apart are always welcome. buildbox-casd and Bazel 9 ping every 10 s; gRPC's own default would end
their connections with ENHANCE_YOUR_CALM."""

UPLOAD_STALL_SECONDS = 120
"""A Write from which nothing came for so long is ended; what it brought can be resumed."""

UPLOADS = 1024
"""Writes in progress per worker. More are told UNAVAILABLE and come again."""

DRAIN_SECONDS = 30
"""What running transfers get to finish after SIGTERM."""

# -- uploads and reads --------------------------------------------------------------------------------------------

IN_MEMORY_UPLOAD_BYTES = 1 * MIB
"""A streamed upload up to this size is collected in memory; a larger one is spooled to a file."""

STREAM_WINDOW_BYTES = 128 * KIB
"""What a peer may send on one stream before the server asks for more (RFC 9113 §5.2)."""

SOCKET_READ_BYTES = 128 * KIB
"""The most that is read from a connection at once; gRPC's default of 4 MiB pins that much per connection."""

MESSAGES_IN_HAND = 6
"""Write messages that one worker receives or stores at once. gRPC holds a message of up to ``RECEIVE_BYTES`` while it
comes, so a hundred uploads would hold a hundred; casd's messages have 2 MiB."""

MESSAGE_PATIENCE_SECONDS = 1.0
"""How long an upload may keep its turn while its message comes; then the turn passes on, so that peers which stall do not
hold up the others."""

LOOKUPS_ON_LOOP = 256
"""Look-ups that may be done on the event loop; more go to a thread."""

CLOSURE_BLOBS = 5_000_000
"""The most blobs one name may stand for; a walk ends there instead of running for ever."""

TREE_DEPTH = 512
"""The deepest tree that a closure walk follows; deeper ones are refused rather than recursed into."""

DIRECTORY_BYTES = 64 * MIB
"""The largest encoded Directory that a walk will parse. A directory of 500 000 files is about 60 MB."""

# -- access, leases -----------------------------------------------------------------------------------------------

LEASE_MS = 3_600_000
"""How long a blob that was reported present is kept for the Push that will name it."""

REFUSED_MS = 3_600_000
"""How long it is remembered that a blob found no room."""

REFUSED_DIGESTS = 100_000
"""How many refused digests are remembered; beyond it the memory says 'perhaps' to everything."""

# -- store --------------------------------------------------------------------------------------------------------

SEGMENT_MIN_BYTES = 256 * KIB
SEGMENT_MAX_BYTES = 64 * MIB
SEGMENTS_PER_QUOTA = 64
"""A segment is quota/64 within these bounds: small enough that one can be spared, large enough to be few."""

LMDB_MAP_BYTES = 64 * GIB
"""Address space for one LMDB environment. Fixed: growing it breaks the other processes."""

LMDB_READERS = 4096
"""Reader slots of one LMDB environment, for all processes together."""

NUMBERS_AT_ONCE = 64
"""Segment numbers taken from the durable counter in one go."""

OPEN_SEGMENTS = 512
"""Descriptors of segments kept open per process."""

SYNC_EVERY_BYTES = 32 * MIB
"""A writer starts an fdatasync of its segment after this much, so that a Push waits for the tail only."""

TOUCH_LOG_BYTES = 8 * MIB
"""A touch log is closed and a new one begun at this size."""

RESERVE_BYTES = 2_000_000_000
"""Free disk space that is left to other programs, unless 5 % of the file system is less."""

DEFAULT_QUOTA_SHARE = 0.9
"""Of what the file system would have free without this REPO."""


def segment_bytes(quota_bytes: int) -> int:
    """The size of a segment in a repository with this quota."""
    return max(SEGMENT_MIN_BYTES, min(SEGMENT_MAX_BYTES, quota_bytes // SEGMENTS_PER_QUOTA))
