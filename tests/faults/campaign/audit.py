"""Judging what servers answer.

The rule: whoever gets an answer checks all of it at once. What is fetched must be readable to its last byte, what is
read must be the blob asked for, and a miss must be of something that was allowed to go.
"""

from __future__ import annotations

from faults.campaign.artifacts import Artifact, artifact
from faults.campaign.client import NoAnswer, PatientClient, Refused
from faults.campaign.ledger import Ledger

from millpond.core.digest import Digest


def audit(ledger: Ledger, client: PatientClient, key: str, *, read: bool = True) -> bool:
    """Fetch a name and read its closure; whether it was there."""
    wanted = artifact(key)
    used_at, began = ledger.used_at(key), ledger.touch(key, wanted.size_bytes)
    try:
        answer = client.fetch(wanted)
        if answer is None:
            _missed(ledger, key, used_at)
        elif answer != wanted.digest:
            ledger.found(f"{key} is bound to {answer} and not to {wanted.digest}")
        else:
            ledger.fetched(key, began)
            ledger.count("names fetched")
            if read:
                check_present(ledger, client, wanted, list(wanted.contents), began, f"{key} was fetched")
            return True
    except (Refused, NoAnswer) as why:
        ledger.found(f"{key} could not be audited: {why}")
    finally:
        ledger.touch(key, wanted.size_bytes)
    return False


def _missed(ledger: Ledger, key: str, used_at: int | None) -> None:
    ledger.count("names missed")
    if used_at is not None and ledger.expected(used_at):
        ledger.found(f"{key} is a miss, after {ledger.used_since(used_at)} bytes were used since it was")


def check_present(
    ledger: Ledger, client: PatientClient, of: Artifact, digests: list[Digest], began: int, since: str
) -> None:
    """``digests`` were said to be there, by an answer that was asked for at ``began``: they are, right to the byte."""
    for digest, data in client.get(digests).items():
        if data is None:
            if ledger.expected(began):
                ledger.found(
                    f"{since}, and blob {digest} is a miss when {ledger.used_since(began)} bytes were used since"
                )
        elif data != of.contents[digest]:
            ledger.found(f"blob {digest} was served with other content ({len(data)} bytes)")
        else:
            ledger.count("blobs read")
            ledger.count("bytes read", len(data))


def check_whatever_is_there(ledger: Ledger, client: PatientClient, of: Artifact) -> None:
    """Its blobs may or may not be there, for instance because they are just being uploaded; nothing else may be served."""
    for digest, data in client.get(of.contents).items():
        if data is not None and data != of.contents[digest]:
            ledger.found(f"blob {digest} was served with other content ({len(data)} bytes)")
