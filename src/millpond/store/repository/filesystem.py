"""What the store must know of the machine: whether a place is fit for it, and who else is there.

All processes of a repository are on one host, in one pid name space, of one user, over a local file system: flock,
LMDB's lock table and its shared memory need each of these.
"""

import json
import os
from contextlib import suppress
from pathlib import Path

from millpond.core import json_text, limits
from millpond.core.errors import RefusedToStart

# Types in /proc/self/mountinfo whose locks or memory maps are not coherent between hosts, or not there at all.
_NETWORK_TYPES = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "gfs2", "ocfs2", "beegfs"}
    | {"fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone", "fuse.ceph", "fuse.gcsfuse", "fuse.davfs2"}
)


def boot_id() -> str:
    """A name of this boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def writable(directory: str) -> bool:
    """Whether we may write there (permissions and mount)."""
    return os.access(directory, os.W_OK | os.X_OK)


def check_local(path: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> None:
    """Refuse a network file system.

    Raises:
        RefusedToStart: ``path`` lies on one.
    """
    kind = _type_of(path, mountinfo.read_text())
    if kind in _NETWORK_TYPES:
        raise RefusedToStart(
            f"{path} is on a network file system ({kind}), where locks and memory maps are not safe:"
            " name a directory on a local disk"
        )


def _type_of(path: Path, mountinfo: str) -> str:
    """The type of the file system at ``path``: that of the mount of its device (proc(5), mountinfo)."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0]
    return ""


def default_quota_bytes(directory: str) -> int:
    """Nine tenths of what the file system would have free without this repository."""
    disk = os.statvfs(directory)
    own = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with suppress(FileNotFoundError):  # another process renamed or removed it
                own += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return int((disk.f_bavail * disk.f_frsize + own) * limits.DEFAULT_QUOTA_SHARE)


def size_bytes(directory: str) -> int:
    """The size of the file system."""
    disk = os.statvfs(directory)
    return disk.f_blocks * disk.f_frsize


def _inhabitants() -> dict[str, object]:
    return {"boot": boot_id(), "pid_namespace": os.stat("/proc/self/ns/pid").st_ino, "user": os.geteuid()}


def write_inhabitants(path: str) -> None:
    """Say who opens the repository, in the lock file that its processes hold."""
    Path(path).write_text(json.dumps(_inhabitants()))


def check_inhabitants(path: str, repository: str) -> None:
    """Refuse a repository that is in use by processes which we cannot share it with.

    Raises:
        RefusedToStart: they are of another user, pid name space or host.
    """
    try:
        theirs = json_text.parse(Path(path).read_text())
    except ValueError:
        return
    differing = [fact for fact, value in _inhabitants().items() if theirs.get(fact) != value]
    words = {"boot": "on another host", "pid_namespace": "in another pid name space", "user": "of another user"}
    if differing:
        raise RefusedToStart(
            f"{repository} is in use by a server {words[differing[0]]}: all servers of a repository run as one user"
            " on one host, outside of separate containers"
        )
