"""What this user's home remembers of measurements: digests of files, and the last measurement that a CAS accepted.

Neither is trusted by anybody else. The digests serve simulated enclaves, which protect nothing against whoever could
change them; a listing only explains.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from strongroom.cas.files import create_once, replace
from strongroom.cli import output
from strongroom.cli.workspace import Home
from strongroom.crypto import KEY_SIZE, digest, random_key
from strongroom.enclave.digests import MAX_CACHE, boot_of_machine
from strongroom.enclave.listing import MAX_LISTING, Listing
from strongroom.enclave.measure import KNOWN
from strongroom.errors import FormatError, UsageError

_CACHE, _KEY, _LISTINGS = "digest-cache", "digest-cache.key", "measured"
_MAX_LISTINGS = 20
_NO_CACHE = (OSError, ValueError)  # a home that cannot be written, a key of another length, or not Linux


@contextmanager
def known_digests(home: Home) -> Iterator[None]:
    """Measure within: files that this home has seen since the machine was started are not read again."""
    load_digests(home)
    yield
    save_digests(home)


def load_digests(home: Home) -> None:
    """Take in the home's digests; says so if they were damaged, and goes on without."""
    cache = home.path / _CACHE
    with suppress(*_NO_CACHE):
        key, boot = _key(home), boot_of_machine()
        try:
            with cache.open("rb") as file:
                KNOWN.load(file.read(MAX_CACHE + 1), key, boot)
        except FileNotFoundError:
            pass
        except FormatError as error:
            output.note(f"{error}; dropped {cache}, every file is read anew")
            KNOWN.grown = True


def save_digests(home: Home) -> None:
    """Keep what was read since, if anything was."""
    if KNOWN.grown:
        with suppress(*_NO_CACHE):
            replace(home.path / _CACHE, KNOWN.to_bytes(_key(home), boot_of_machine()))
            KNOWN.grown = False


def _key(home: Home) -> bytes:
    path = home.path / _KEY
    if not path.exists():
        create_once(path, random_key())
    key = path.read_bytes()
    if len(key) != KEY_SIZE:
        raise ValueError("digest cache: no key")
    return key


def remember_accepted(home: Home, policy: str, listing: Listing) -> None:
    """Keep this as the last measurement that a CAS accepted for that policy."""
    directory = home.path / _LISTINGS
    path = directory / f"{_word(policy)}-{listing.measurement[:32]}"
    with suppress(OSError):
        directory.mkdir(mode=0o700, exist_ok=True)
        if path.exists():
            path.touch()
            return
        replace(path, zlib.compress(listing.to_bytes(), 1))
        for old in directory.glob(f"{_word(policy)}-*"):
            if old != path:
                old.unlink(missing_ok=True)
        newest_last = sorted(directory.iterdir(), key=lambda each: each.stat().st_mtime)
        for old in newest_last[:-_MAX_LISTINGS]:
            old.unlink(missing_ok=True)


def last_accepted(home: Home, policy: str) -> Listing:
    """What `remember_accepted` kept.

    Raises:
        UsageError: nothing.
        FormatError: what is there is damaged.
    """
    found = [*(home.path / _LISTINGS).glob(f"{_word(policy)}-*")]
    if not found:
        raise UsageError(
            f"diff: {home.path} remembers no accepted measurement of policy {policy}",
            hint="where it was accepted, `strongroom measure --output FILE` writes one for --diff FILE",
        )
    return read_listing(max(found, key=lambda each: each.stat().st_mtime))


def read_listing(path: Path) -> Listing:
    """A listing from a file, compressed or not. Raises FormatError unless it is one."""
    with path.open("rb") as file:
        raw = file.read(MAX_LISTING + 1)
    if raw[:1] == b"\x78":
        opened = zlib.decompressobj()
        try:
            raw = opened.decompress(raw, MAX_LISTING + 1)
        except zlib.error:
            raise FormatError(f"listing: {path} is damaged") from None
    return Listing.from_bytes(raw)


def _word(policy: str) -> str:
    return digest(b"strongroom/measured", policy.encode()).hex()[:24]
