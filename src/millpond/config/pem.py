"""PEM files as people make them: several blocks in a row, text between them, a missing newline at a seam.

The rule: a damaged block never hides the blocks around it. ``cat client.crt >> authorized.crt`` after a copy that
lost its end is a common way to break such a file, and those who were in it before must still get in.
"""

import re
from dataclasses import dataclass
from itertools import zip_longest

_MARK = re.compile(rb"-----(BEGIN|END) ([A-Z0-9 ]{1,40})-----")


@dataclass(frozen=True, slots=True)
class Block:
    """One block: ``label`` as in ``BEGIN label``, ``position`` from 1, ``pem`` with both marks, None when cut off."""

    label: str
    position: int
    pem: bytes | None

    @property
    def is_certificate(self) -> bool:
        """Whether this should be an X.509 certificate."""
        return self.label.endswith("CERTIFICATE")

    @property
    def is_private_key(self) -> bool:
        """Whether this should be a private key, of any kind."""
        return self.label.endswith("PRIVATE KEY")

    @property
    def is_encrypted(self) -> bool:
        """Whether a passphrase protects it: PKCS #8 says so in the label, RFC 1421 §4.6.1.1 in a header."""
        return self.label.startswith("ENCRYPTED") or b"Proc-Type: 4,ENCRYPTED" in (self.pem or b"")


def blocks_of(data: bytes) -> list[Block]:
    """Every block that begins in ``data``, in order; what lies between blocks is skipped."""
    blocks: list[Block] = []
    marks = list(_MARK.finditer(data))
    for begin, end in zip_longest(marks, marks[1:]):
        if begin[1] != b"BEGIN":
            continue
        whole = end is not None and end[1] == b"END" and end[2] == begin[2]
        pem = data[begin.start() : end.end()] + b"\n" if whole and end is not None else None
        blocks.append(Block(begin[2].decode("ascii"), len(blocks) + 1, pem))
    return blocks
