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

ARTIFACT_MESSAGE_BYTES = 2 * MIB
"""The largest artifact as a message of ArtifactService: it must fit into ``ANSWER_BYTES``. A thousand dependencies are
some 150 KB."""

SOURCE_MESSAGE_BYTES = 4 * KIB
"""The largest source as a message of SourceService, which is kept among the names. BuildStream's have 70 bytes."""

INSTANCE_CHARS = 255
"""The longest instance name."""

RESOURCE_NAME_CHARS = 2048
"""The longest ByteStream resource name."""

METADATA_BYTES = 32 * KIB
"""The most header bytes of one call."""

# -- peers --------------------------------------------------------------------------------------------------------

STREAMS_PER_CONNECTION = 256
"""Concurrent calls on one connection; more wait at the client (RFC 9113 §5.1.2). Each may have sent ``STREAM_WINDOW_BYTES``
that nobody has looked at yet."""

RESETS_AT_ONCE = 4_000
RESETS_PER_SECOND = 400
"""Calls that a peer may take back, at once and for long, before its connection is ended (CVE-2023-44487). A build that is
interrupted takes back what it has in flight."""

HANDSHAKE_SECONDS = 10
"""What a TLS handshake may take."""

UPLOAD_STALL_SECONDS = 120
"""A Write from which nothing came for so long is ended; what it brought can be resumed. As long, at least, a request may stand
still half-way, and a connection that takes nothing of its answers, or says nothing at all."""

UPLOADS = 1024
"""Writes in progress per worker. More are told UNAVAILABLE and come again."""

DRAIN_SECONDS = 30
"""What running transfers get to finish after SIGTERM."""

# -- HTTP ---------------------------------------------------------------------------------------------------------

HTTP_HEADER_BYTES = 16 * KIB
"""The most of a request's first line and headers that is collected; beyond it requests begin to be refused (431), at twice
as much all are. A longest ref has 1 KiB."""

HTTP_CONNECTIONS = 1024
"""Connections at once. For one more, that which has waited longest without a request goes; curl keeps 8 per pull."""

HTTP_HANDSHAKE_SECONDS = 10
"""What a TLS handshake may take."""

HTTP_REQUEST_SECONDS = 60
"""From the end of an answer, or of the handshake, to the end of the next request's headers: how long a connection may be
idle, and how slowly a request may come."""

HTTP_STALL_SECONDS = 60
"""A peer that has taken nothing of ``HTTP_CHUNK_BYTES`` for so long is not waited for: 4 KiB a second is too slow."""

HTTP_CHUNK_BYTES = 256 * KIB
"""The unit in which files are read and sent; a smaller one is read at once."""

USE_NOTED_SECONDS = 10
"""How often it is noted that a pull goes on. Prune spares what was used a little longer ago than this."""

PULLING_PEERS = 1024
"""Addresses of which it is remembered what they pull; beyond it that which has been silent for longest is forgotten."""

PULLED_COMMITS = 256
"""Commits of one address for which that is remembered: those that it began last. A client pulls few at a time, but many
may come by one proxy."""

PULL_SECONDS = 600
"""A pull of which the connection says nothing any more counts as going on for so long, while its address asks for
anything."""

# -- uploads and reads --------------------------------------------------------------------------------------------

IN_MEMORY_UPLOAD_BYTES = 1 * MIB
"""A streamed upload up to this size is collected in memory; a larger one is spooled to a file."""

STREAM_WINDOW_BYTES = 256 * KIB
"""What a peer may send on one stream before the server asks for more (RFC 9113 §5.2)."""

FRAME_BYTES = 256 * KIB
"""The largest frame that is accepted (RFC 9113 §4.2): gRPC clients then send large messages in fewer pieces."""

INFLOW_BYTES = 3 * RECEIVE_BYTES
"""For requests on their way in that are larger than a stream's window, in one worker; more of them wait their turn."""

UNSENT_BYTES = 1 * MIB
"""A stream's answer waits for its peer while so much of it has not been taken."""

UNSENT_PER_CONNECTION_BYTES = 16 * MIB
"""While a peer has not taken so much of its answers, its further requests wait."""

MESSAGES_IN_HAND = 6
"""Write messages that one worker stores at once; casd's have 2 MiB. What waits for its turn has room in its stream's window,
or of ``INFLOW_BYTES``."""

MESSAGE_PATIENCE_SECONDS = 1.0
"""How long room is kept for a large message of which nothing comes; then it passes on, so that peers which stall do not hold
up the others."""

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

# -- names --------------------------------------------------------------------------------------------------------

PATTERN_CHARS = 4096
"""The longest pattern over names."""

NAMES_SHARE = 0.1
"""Of the quota, for names; beyond it the least recently used go."""

NAMES_MIN_BYTES = 256 * KIB
"""Names may always hold this much, however small the quota: a few hundred of them."""

NAMES_KEPT_SHARE = 0.9
"""Upkeep removes names, least recently used first, until they hold no more than this share of what they may."""

CHANGES_KEPT = 1024
"""How many changes of names are remembered for upkeep; when it missed more, it looks at all names."""

BROKEN_MS = 86_400_000
"""A name that is not whole for so long is removed; until then its blobs may come back."""

BACKUP_MS = 3_600_000
"""Names are copied when they changed and the last copy is older than this."""

BACKUPS = 2
"""Copies of names that are kept."""

# -- store --------------------------------------------------------------------------------------------------------

SEGMENT_MIN_BYTES = 256 * KIB
SEGMENT_MAX_BYTES = 64 * MIB
SEGMENTS_PER_QUOTA = 64
"""A segment is quota/64 within these bounds: small enough that one can be spared, large enough to be few."""

LMDB_MAP_BYTES = 64 * GIB
"""Address space for one LMDB environment. Fixed: growing it breaks the other processes."""

LMDB_READERS = 1024
"""Reader slots of one LMDB environment, for all processes together. A process holds 8 and one per read that is running,
some 30 when all its threads read. Each slot is 64 bytes on disk, which is a lot in a cache of 20 MB."""

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

HEAD_ROOM_SHARE = 0.02
HEAD_ROOM_MAX_BYTES = 1 * GIB
"""Eviction begins when this share of the quota is left, or this much: what a fast writer brings in some seconds."""

SMALL_QUOTA_BYTES = 256 * MIB
"""Below such a quota it begins when somebody waits for room: writers may wait a little, but what fits stays."""

GROWTH_MIN_BYTES = 320 * KIB
GROWTH_MAX_BYTES = 32 * MIB
"""Claims leave so much free for logs and databases, which must be able to grow before anything can go: quota/64, or
quota/128 of a small one, within these bounds."""
GROWTH_SHARE = 5
"""And at least this part of all that is not blobs."""

UNUSED_SHARE = 1 / 8
"""Of the quota, what a database may have replaced and cannot use again, because somebody may be reading it. Files of
databases never shrink: beyond this writers wait until a process that was stopped goes on or ends, and eviction beyond twice
as much."""

ROWS_MIN = 8
ROWS_MAX = 1000
"""The most rows that one transaction changes, between these bounds: what it may need must be there before it begins, and
others wait for it."""

SUSPENDED_SHARE = 1 / 16
SUSPENDED_SECONDS = 600
"""When room is needed, interrupted uploads keep this share of the quota, and only those to which something came so lately:
a client whose connection broke is back within seconds."""

KEPT_UPLOAD_SECONDS = 86_400
"""An interrupted upload is kept for a day, if nobody needs the room."""

ROOM_SECONDS = 30
"""How long a write waits for upkeep to make room. Longer, and clients take the server for dead."""

UPKEEP_SECONDS = 3
"""How long a write that finds no room waits for an upkeep process where there is none: it may just be starting again."""

DEFAULT_QUOTA_SHARE = 0.9
"""Of what the file system would have free without this REPO."""

PIN_SHARE = 0.5
"""Of the quota, for what pins keep; the rest stays a cache."""

WARN_AGE_MS = 7 * 86_400_000
"""What was used within a week and has to go would have been pulled again: the cache is too small."""

SCRUB_DAYS = 30
"""Everything is verified once in so many days."""

SCRUB_RATE_BYTES = 20_000_000
"""Per second; less than a tenth of what a disk reads."""


TOUCH_LOG_MIN_BYTES = 16 * KIB
"""A touch log is quota/1024 between this and ``TOUCH_LOG_BYTES``: it has all its blocks from the beginning."""

BALLAST_MIN_BYTES = 64 * KIB
BALLAST_MAX_BYTES = 4 * MIB
"""Disk space that is given up when the disk is full: quota/256 within these bounds, enough to delete some thousand
entries."""

# -- the OSTree generation ----------------------------------------------------------------------------------------

OSTREE_REF_CHARS = 1024
OSTREE_REF_PART_CHARS = 255
"""The longest ref, and the longest of its parts: each is a file or a directory, and Linux's NAME_MAX is 255."""

OSTREE_REFS = 256
"""The most refs one push may set. Clients set two, the strong and the weak key."""

OSTREE_METADATA_BYTES = 16 * MIB
"""The largest commit, dirtree, dirmeta, commitmeta or header of a file; they are held in memory. libostree's own bound is
larger, and 16 MiB are a directory of more than 200 000 files."""

OSTREE_CONTENT_BYTES = 64 * GIB
"""The largest file, uncompressed. Zeros shrink to a thousandth, so what is sent bounds nothing."""

OSTREE_OBJECTS = 2_000_000
"""The most objects in one push."""

OSTREE_PAX_BYTES = 64 * KIB
"""The largest extended header of a tar member (pax(1), "pax Extended Header"). Clients send an mtime."""

OSTREE_STALL_SECONDS = 3_600
"""A client that sends nothing for so long is given up; it may have to compress all of an artifact between two messages."""

OSTREE_LOCK_SECONDS = 3_600
"""How long a push waits for the repository's lock: an administrator's ``ostree prune`` may hold it for that long."""

OSTREE_LEAVING_SECONDS = 2
"""Between a summary without a ref and the removal of its objects: who has just read the old summary asks for the commit
within this time."""

OSTREE_PULLING_SECONDS = 30
"""A commit that somebody fetched, or fetched objects after, so lately is being pulled: its objects stay."""

OSTREE_LOG_BYTES = 8 * MIB
"""The log of pushes, and that of uses, is begun anew at this size."""

OSTREE_EVICTED_SHARE = 0.05
"""A push that finds no room makes room for itself and for this share of the quota, so that not every push evicts."""


def segment_bytes(quota_bytes: int) -> int:
    """The size of a segment in a repository with this quota."""
    return max(SEGMENT_MIN_BYTES, min(SEGMENT_MAX_BYTES, quota_bytes // SEGMENTS_PER_QUOTA))


def claimed_ahead_bytes(quota_bytes: int) -> int:
    """How much a writer sets aside at once in a repository with this quota: it is not asked for every batch."""
    return quota_bytes // (256 if quota_bytes >= SMALL_QUOTA_BYTES else 1024)


def growth_bytes(quota_bytes: int) -> int:
    """What is kept free for logs and databases in a repository with this quota."""
    share = 64 if quota_bytes >= SMALL_QUOTA_BYTES else 128
    return max(GROWTH_MIN_BYTES, min(GROWTH_MAX_BYTES, quota_bytes // share))


def rows_at_once(quota_bytes: int) -> int:
    """How many rows one transaction changes at most in a repository with this quota.

    Each may need three new pages. Above the smallest quotas that may be more than is kept free for growth: most of the
    pages are free already, and a segment's room is left as well.
    """
    share = 32 if quota_bytes >= SMALL_QUOTA_BYTES else 256
    return max(ROWS_MIN, min(ROWS_MAX, quota_bytes // share // (3 * 4096)))


def touch_log_bytes(quota_bytes: int) -> int:
    """The size of a touch log in a repository with this quota."""
    return max(TOUCH_LOG_MIN_BYTES, min(TOUCH_LOG_BYTES, quota_bytes // 1024))


def ballast_bytes(quota_bytes: int) -> int:
    """The size of the ballast in a repository with this quota."""
    return min(quota_bytes // 64, max(BALLAST_MIN_BYTES, min(BALLAST_MAX_BYTES, quota_bytes // 256)))


def names_bytes(quota_bytes: int) -> int:
    """What names may hold in a repository with this quota."""
    return max(NAMES_MIN_BYTES, int(quota_bytes * NAMES_SHARE))
