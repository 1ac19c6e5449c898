"""What this user's home remembers of measurements: digests of files, and the last measurement that a CAS accepted.

Neither is trusted by anybody else. The digests and compiled code serve simulated enclaves, which protect nothing from
whoever could change them; a listing only explains. Of a home in which somebody else may write, as under `sudo -E`, they
are not used: compiled code is run by boot, with the rights of who launches.
"""

from __future__ import annotations

import errno
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from strongroom.cas.files import create_once, replace
from strongroom.cli import early, output
from strongroom.cli.workspace import Home
from strongroom.crypto import KEY_SIZE, digest, random_key
from strongroom.enclave.compiled import Compiled, sources_of_boot
from strongroom.enclave.config import SANDBOX, BootConfig
from strongroom.enclave.digests import MAX_CACHE, boot_of_machine
from strongroom.enclave.listing import MAX_LISTING, Listing
from strongroom.enclave.measure import KNOWN, Measurement
from strongroom.errors import EnclaveError, FormatError, UsageError

_CACHE, _KEY, _LISTINGS, _COMPILED = early.DIGESTS, "digest-cache.key", "measured", "compiled"
_COMPILE_SECONDS = 10.0  # at the end of a run; the next one goes on with it
_MAX_LISTINGS = 20
_WRITTEN = ".written"  # of a listing that no CAS has accepted yet
_NO_CACHE = (OSError, ValueError)  # a home that cannot be written, a key of another length, or not Linux


@contextmanager
def known_digests(home: Home) -> Iterator[None]:
    """Measure within: files that this home has seen since the machine was started are not read again."""
    load_digests(home)
    yield
    save_digests(home)


def load_digests(home: Home) -> None:
    """Take in the home's digests; says so if they were damaged, and goes on without."""
    KNOWN.early, KNOWN.look = early.found, early.looked
    cache = home.path / _CACHE
    if not home.private:
        output.note(f"{home.path} is another user's, or others may write there: no digests or compiled code from it")
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


def compiled_code(home: Home) -> Path | None:
    """The compiled code that this home keeps, checked; says so if it was changed, and goes on without."""
    with suppress(*_NO_CACHE):
        try:
            return _compiled(home).checked()
        except FormatError as error:
            output.note(str(error))
    return None


@contextmanager
def compiling_boot(home: Home, config: BootConfig) -> Iterator[Callable[[Measurement], None]]:
    """Measure within, and hand the measurement over: what boot imports is compiled meanwhile, if it is not kept."""
    with ExitStack() as asking:
        with suppress(*_NO_CACHE):
            if config.isolation == SANDBOX and not _compiled(home).holds(config.entry):
                KNOWN.to_compile = asking.enter_context(sources_of_boot(config.entry))
                asking.callback(setattr, KNOWN, "to_compile", tuple)

        def keep(measured: Measurement) -> None:
            names = KNOWN.code or KNOWN.to_compile()  # which nobody has asked for, where nothing had to be read
            if names:
                with suppress(*_NO_CACHE, FormatError, EnclaveError):  # the last: files have changed since
                    _compiled(home).add(names, _sources(measured), seconds=_COMPILE_SECONDS, made=KNOWN.code)

        yield keep


def keep_compiled(home: Home, names: Sequence[str], measured: Measurement) -> None:
    """Compile, for the next enclave, those of these sources that were measured."""
    if names:
        with suppress(*_NO_CACHE, FormatError, EnclaveError):  # the last: files have changed since
            _compiled(home).add(names, _sources(measured), seconds=_COMPILE_SECONDS)


def _sources(measured: Measurement) -> dict[str, bytes]:
    """SHA-256 of each measured file of the platform, by its path."""
    return {entry.path: entry.sha256 for part in measured.platform for entry in part.entries}


def _compiled(home: Home) -> Compiled:
    return Compiled(home.path / _COMPILED, _key(home), KNOWN)


def _key(home: Home) -> bytes:
    path = home.path / _KEY
    if not home.private:
        raise PermissionError(errno.EPERM, "others may write there", str(home.path))  # and so there is no cache
    if not path.exists():
        create_once(path, random_key())
    key = path.read_bytes()
    if len(key) != KEY_SIZE:
        raise ValueError("digest cache: no key")
    return key


def remember_measured(home: Home, policy: str, measured: Measurement, config: BootConfig) -> None:
    """Keep the listing of what was measured as `remember_accepted` does; it is made only if it is not there yet."""
    with suppress(OSError, EnclaveError):  # the last: files have changed since
        path = _place(home, policy, measured.value)
        if path.exists():
            path.touch()
        else:
            remember_accepted(home, policy, Listing.of(measured, config))


def remember_accepted(home: Home, policy: str, listing: Listing) -> None:
    """Keep this as the last measurement that a CAS accepted for that policy."""
    _keep(_place(home, policy, listing.measurement), listing)


def remember_written(home: Home, policy: str, listing: Listing) -> None:
    """Keep this as what a policy names, if no CAS has accepted anything for it yet: so a first refusal is explained."""
    path = _place(home, policy, listing.measurement)
    if all(each.suffix == _WRITTEN for each in path.parent.glob(f"{_word(policy)}-*")):
        _keep(path.with_suffix(_WRITTEN), listing)


def _keep(path: Path, listing: Listing) -> None:
    """Keep it there, and no other of that policy's."""
    directory = path.parent
    with suppress(OSError):
        directory.mkdir(mode=0o700, exist_ok=True)
        if path.exists():
            path.touch()
            return
        replace(path, zlib.compress(listing.to_bytes(), 1))
        for old in directory.glob(f"{path.name.partition('-')[0]}-*"):
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
            f"diff: {home.path} remembers no measurement of policy {policy}, accepted or written",
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


def _place(home: Home, policy: str, measurement: str) -> Path:
    return home.path / _LISTINGS / f"{_word(policy)}-{measurement[:32]}"


def _word(policy: str) -> str:
    return digest(b"strongroom/measured", policy.encode()).hex()[:24]
