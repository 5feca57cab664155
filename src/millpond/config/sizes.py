"""Sizes as people write them.

The rule: what can be read in two ways is read in none. ``50G`` is 50·10⁹ bytes, as disks are sold; ``50Gi`` is
50·2³⁰, as memory is counted; a bare number is bytes; whatever else is refused with an example.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from millpond.core import limits
from millpond.core.errors import RefusedToStart
from millpond.core.wording import format_size as format_size  # where people look for it

_UNITS = {
    "": 1,
    **{letter: 1000**power for power, letter in enumerate("KMGT", start=1)},
    **{f"{letter}I": 1024**power for power, letter in enumerate("KMGT", start=1)},
}
_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,9})?) ?((?:[KMGT]I?)?)B?", re.ASCII | re.IGNORECASE)
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,9})?) ?%", re.ASCII)
_LARGEST_BYTES = 2**63 - 1  # what an off_t holds
QUOTA_MIN_HINT = f"the least quota is {limits.SEGMENT_MIN_BYTES} bytes (256Ki), one segment"
_EXAMPLE = "such as 50G (50·10⁹ bytes), 50Gi (50·2³⁰ bytes) or 50000000000"


@dataclass(frozen=True, slots=True)
class Quota:
    """How much a repository may hold: a number of bytes, or a share of the file system it lies on."""

    amount: float
    is_percent: bool = False

    def bytes_of(self, file_system_bytes: int) -> int:
        """The quota in bytes, for a file system of this size."""
        return int(file_system_bytes * self.amount / 100) if self.is_percent else int(self.amount)

    def __str__(self) -> str:
        """As in a sentence: ``50.0 GB`` or ``80 %``."""
        return f"{self.amount:g} %" if self.is_percent else format_size(int(self.amount))


def explicit_quota_bytes(quota: Quota | None, file_system_bytes: int) -> int | None:
    """The quota that was asked for, in bytes; None when none was.

    Raises:
        RefusedToStart: too little for a repository.
    """
    if quota is None:
        return None
    quota_bytes = quota.bytes_of(file_system_bytes)
    if quota_bytes < limits.SEGMENT_MIN_BYTES:
        raise RefusedToStart(f"a quota of {quota} is {quota_bytes} bytes here, too little: {QUOTA_MIN_HINT}")
    return quota_bytes


def parse_size(text: str) -> int:
    """A number of bytes: ``50G``, ``50Gi``, ``1.5GB``, ``50000000000``.

    Raises:
        ValueError: not a size, less than one byte or too large for a file system; the message is for the user.

    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: write a number and a unit, {_EXAMPLE}")
    size = int(Fraction(match[1]) * _UNITS[match[2].upper()])
    if not 1 <= size <= _LARGEST_BYTES:
        raise ValueError(f"{text!r} is out of range: write a size between 1 byte and 2⁶³-1 bytes, {_EXAMPLE}")
    return size


def parse_quota(text: str) -> Quota:
    """A size, or a percentage of the file system: ``80%``.

    Raises:
        ValueError: neither, too small to hold anything, or not between 0 and 100 %; the message is for the user.

    """
    match = _PERCENT.fullmatch(text.strip())
    if match is None:
        try:
            size_bytes = parse_size(text)
        except ValueError as error:
            raise ValueError(f"{error}, or a percentage of the file system such as 80%") from None
        if size_bytes < limits.SEGMENT_MIN_BYTES:
            raise ValueError(f"{text!r} is too little to hold anything: {QUOTA_MIN_HINT}")
        return Quota(size_bytes)
    percent = float(match[1])
    if not 0 < percent <= 100:
        raise ValueError(f"{text!r} is out of range: write more than 0% and at most 100%, such as 80%")
    return Quota(percent, is_percent=True)


def parse_reserve(text: str) -> Quota:
    """Free space to be left to others: a size, a percentage below 100, or 0 for none.

    Raises:
        ValueError: none of these; the message is for the user.

    """
    try:
        if re.fullmatch(r"0+ ?%?", text.strip()):
            return Quota(0)
        match = _PERCENT.fullmatch(text.strip())
        if match is None:
            return Quota(parse_size(text))
    except ValueError as error:
        raise ValueError(f"{error}, a percentage of the file system such as 5%, or 0") from None
    if not 0 < float(match[1]) < 100:
        raise ValueError(f"{text!r} leaves nothing to the repository: write less than 100%, such as 5%")
    return Quota(float(match[1]), is_percent=True)


def parse_share(text: str) -> float:
    """A percentage as a share: ``50%`` or ``50`` is 0.5.

    Raises:
        ValueError: not between 0 and 100 %; the message is for the user.

    """
    match = _PERCENT.fullmatch(text.strip().removesuffix("%").strip() + "%")
    if match is None or float(match[1]) > 100:
        raise ValueError(f"{text!r} is not a share: write a percentage between 0% and 100%, such as 50%")
    return float(match[1]) / 100
