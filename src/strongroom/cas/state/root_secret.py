"""A CAS's root secret: made once, before anything that hangs on it, and recovered at each start.

The rows of the database are sealed under a key derived from it, and the CA's private key under another. `unseal.json`
in the CAS's directory says how it is kept, and is what makes a way take effect:

1. Where the file is there, it is followed. Another way than the one that is asked for is an error.
2. Where it is not, but a `master.key` is, the CAS is one of before this file: the way is `trust-disk`.
3. Where neither is there, but a database or a CA key, the secret is lost: nothing is made in its place.
4. Else the CAS is new: a secret is drawn and kept, then the file is made.

Each step is durable before the next begins, so that a crash in between leaves a CAS that starts: with its secret, or,
where nothing hangs on one yet, anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from strongroom.cas.files import RESTORE, create_once, replace
from strongroom.cas.state.trust_disk import MASTER_KEY, TrustDisk
from strongroom.cas.state.way import Record, Unsealer, check_secret, check_value, text
from strongroom.crypto import equal, random_key
from strongroom.errors import FormatError, StrongroomError, UsageError, WrongKeyError
from strongroom.storage import LocalDirectory

UNSEAL_FILE = "unseal.json"
BEGUN = "cas.new"
"""There while a new CAS's secret and database are made: one that lost its database is not taken for a new one."""

WAYS = ("trust-disk", "peer", "shares", "tpm", "snp", "sgx")
_VERSION = 1
_MAX_RECORD = 1 << 17


def open_root_secret(directory: Path, unsealer: Unsealer | None = None) -> bytes:
    """The root secret of the CAS with that directory, by the steps at the top of this file.

    Args:
        directory: made with mode 0700 if it does not exist.
        unsealer: the way; without one it is what the file says if that is ``trust-disk``, as it is for a new CAS.

    Raises:
        WrongKeyError: the secret is gone, or is something else.
        UsageError: it is kept in another way.
        StrongroomError: as the way's `recover`.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    wanted = unsealer or TrustDisk(directory)
    record = read_record(directory)
    if record is None:
        # 2
        if (directory / MASTER_KEY).exists():
            if not isinstance(wanted, TrustDisk):
                raise _kept_otherwise(TrustDisk.way, wanted.way)
            return _write_first(directory, wanted, wanted.recover({}))
        # 3
        made = [name for name in ("cas.sqlite", "root.key") if (directory / name).exists()]
        if made and wanted.creates:
            raise WrongKeyError(
                f"{directory / MASTER_KEY}: is missing, and without it the CAS's database cannot be read", hint=RESTORE
            )
        # 4
        if not wanted.creates:
            return _write_first(directory, wanted, wanted.recover({}))
        return _begin(directory, wanted)
    # 1
    if text(record, "unseal") != wanted.way:
        raise _kept_otherwise(text(record, "unseal"), wanted.way)
    secret = check_secret(wanted.recover(record), record)
    _finish_rekeying(directory, wanted, secret)
    return secret


def _begin(directory: Path, wanted: Unsealer) -> bytes:
    """Step 4. A start that was killed is gone on with in the way that it began with, and in no weaker one by default.

    Raises:
        UsageError: that was another.
    """
    create_once(directory / BEGUN, wanted.way.encode())
    begun = (directory / BEGUN).read_bytes().decode("ascii", "replace")
    if begun not in ("", wanted.way):  # those of before are empty
        raise _kept_otherwise(begun, wanted.way)
    if isinstance(wanted, TrustDisk):
        create_once(directory / MASTER_KEY, random_key())  # another process may have been first
        return _write_first(directory, wanted, wanted.recover({}))
    try:
        return _write_first(directory, wanted, random_key())
    except StrongroomError:
        if read_record(directory) is None:  # it cannot be kept in that way
            (directory / BEGUN).unlink(missing_ok=True)
        raise


def rekey(directory: Path, secret: bytes, unsealer: Unsealer) -> None:
    """Keep a CAS's root secret in another way from now on, or anew in the same one, or a running CAS's here for once.

    The secret stays the same: what was kept of it before, and copied, still opens what it opened.

    Raises:
        WrongKeyError: `secret` is not this CAS's.
    """
    record = read_record(directory)
    if record is not None:
        check_secret(secret, record)
    if not unsealer.creates:
        raise UsageError(f"unseal: {unsealer.way} keeps nothing by itself", hint=f"wanted one of {', '.join(WAYS)}")
    kept = unsealer.keep(secret)
    replace(directory / UNSEAL_FILE, _encoded(unsealer.way, secret, kept))
    LocalDirectory(directory).sync()
    _finish_rekeying(directory, unsealer, secret)


def read_record(directory: Path) -> dict[str, Any] | None:
    """What `unseal.json` says; None if there is none.

    Raises:
        FormatError: it is something else.
    """
    path = directory / UNSEAL_FILE
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_RECORD + 1)
    except FileNotFoundError:
        return None
    try:
        record = json.loads(raw) if len(raw) <= _MAX_RECORD else None
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or record.get("version") != _VERSION or record.get("unseal") not in WAYS:
        raise FormatError(f"{path}: does not say how a root secret is kept, or a newer version wrote it", hint=RESTORE)
    return record


def _encoded(way: str, secret: bytes, record: Record) -> bytes:
    whole = {"version": _VERSION, "unseal": way, "check": check_value(secret), **record}
    return json.dumps(whole, indent=1).encode() + b"\n"


def _write_first(directory: Path, unsealer: Unsealer, secret: bytes) -> bytes:
    """Keep the secret and make the file, unless another process made it first."""
    mine = _encoded(unsealer.way, secret, unsealer.keep(secret))
    create_once(directory / UNSEAL_FILE, mine)
    record = read_record(directory)
    assert record is not None  # noqa: S101  # create_once leaves one there
    if equal(check_value(secret).encode(), text(record, "check").encode()):
        return secret
    if record["unseal"] != unsealer.way:
        raise _kept_otherwise(text(record, "unseal"), unsealer.way)
    return check_secret(unsealer.recover(record), record)


def _finish_rekeying(directory: Path, unsealer: Unsealer, secret: bytes) -> None:
    """Remove a `master.key` that a change of the way left: it is of no use any more but to a thief."""
    path = directory / MASTER_KEY
    if not isinstance(unsealer, TrustDisk) and path.exists() and equal(path.read_bytes(), secret):
        path.unlink()
        LocalDirectory(directory).sync()


def _kept_otherwise(kept: str, wanted: str) -> UsageError:
    return UsageError(
        f"unseal: got {wanted}, and this CAS's root secret is kept by {kept}",
        hint=f"start it with --unseal {kept}; `strongroom cas rekey --unseal {wanted}` changes it",
    )
