"""What a program finds besides what is mounted, in the enclave's private memory.

Files with secrets, files that were sealed by themselves, and a directory in which it leaves secrets to be deposited.

Rules:

- All of it is at the paths that were measured, written before the program starts and gone with the enclave.
- A sealed file is decrypted as a whole, each block authenticated. One that the program may write is sealed again when
  it has ended, whatever its exit status, and only if it is another than before.
- A deposit is made once the program has ended with status 0 and its outputs are sealed: of what lies in
  `/run/deposits` under the name of a secret that the policy has as `deposited`.
- A program that may write the directories above may put links in their place. So both directories are opened before it
  starts, and what it leaves is looked up in these: boot has rights, and files, that it has not.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from strongroom.cas.wire import MAX_DEPOSIT
from strongroom.crypto import ContentDigest, content_digest
from strongroom.enclave.boot import Booted
from strongroom.enclave.config import DEPOSITS_DIRECTORY, ROOT_DIRECTORY, FileMount, VaultMount
from strongroom.enclave.confine import give, give_alone
from strongroom.enclave.image_paths import inside
from strongroom.enclave.room import until_room
from strongroom.enclave.witness import Witness
from strongroom.errors import EnclaveError
from strongroom.sealed import SealedFile

_PIECE = 1 << 20


@contextmanager
def given_files(booted: Booted, witness: Witness) -> Iterator[None]:
    """Write all of it; at the end seal again what the program may write."""
    config = booted.config
    if not booted.sandboxed and (config.sealed or config.files):
        raise EnclaveError("files: cannot appear at their paths without a mount namespace")
    with ExitStack() as sealed:
        for written in config.files:
            _write(booted, written)
        for rule in config.sealed:
            sealed.enter_context(_sealed_file(booted, rule, witness))
        yield


class Deposits:
    """Deposits what the program has left for that, at the end of its ``with`` block: after what it wrote is sealed.

    Attributes:
        status: the program's exit status, once it has ended.
    """

    def __init__(self, booted: Booted) -> None:
        self._booted = booted
        self._directory = -1
        self.status: int | None = None

    def __enter__(self) -> Self:
        names = self._booted.provisions.deposits
        if names and self._booted.sandboxed:
            place = inside(self._booted.config, DEPOSITS_DIRECTORY)
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            give(self._booted, place)
            self._directory = _opened(place)
        elif names:
            self._booted.control.event("notice", text="no sandbox: the program can deposit nothing")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises EnclaveError if something there cannot be deposited; what can be, is."""
        if self._directory < 0:
            return
        try:
            if kind is None and self.status == 0:
                self._deposit_all()
        finally:
            os.close(self._directory)

    def _deposit_all(self) -> None:
        wrong: list[EnclaveError] = []
        for name in sorted(os.listdir(self._directory)):  # noqa: PTH208  # of a descriptor
            try:
                self._deposit(name)
            except EnclaveError as problem:
                wrong.append(problem)
        if wrong:
            raise wrong[0]

    def _deposit(self, name: str) -> None:
        if name not in self._booted.provisions.deposits:
            raise EnclaveError(f"deposit: {name[:80]!r} is no secret that the policy has as deposited")
        try:
            with _left(name, self._directory) as file:
                value = file.read(MAX_DEPOSIT + 1)
        except OSError as error:
            raise EnclaveError(f"deposit {name}: {(error.strerror or '').lower()}, wanted a regular file") from None
        if len(value) > MAX_DEPOSIT:
            raise EnclaveError(f"deposit {name}: more than {MAX_DEPOSIT} bytes")
        self._booted.patiently(lambda: self._booted.session.deposit(name, value))
        self._booted.control.event("notice", text=f"secret {name}: deposited, {len(value)} bytes")


def _write(booted: Booted, rule: FileMount) -> None:
    path = inside(booted.config, rule.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = booted.render(rule.content).encode("utf-8", "surrogateescape")
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), rule.mode)
    give(booted, path)


@contextmanager
def _sealed_file(booted: Booted, rule: VaultMount, witness: Witness) -> Iterator[None]:
    path, writable = inside(booted.config, rule.mount), booted.access(rule.name) == "read-write"
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened:
        directory = _opened(path.parent)
        opened.callback(os.close, directory)
        file = opened.enter_context(booted.open_file(rule.name))
        before = _decrypt(file, path, 0o600 if writable else 0o400)
        give(booted, path)
        if writable and path.parent not in (Path("/"), Path(ROOT_DIRECTORY)):
            give_alone(booted, path.parent)
        witness.sealed_file(rule.name, file.root, path)
        how = "in memory, sealed when the program ends" if writable else "decrypted to private memory"
        booted.control.event("vault", vault=rule.name, mount=rule.mount, how=how)
        if not writable:
            opened.close()
        yield
        if writable:
            try:
                until_room(
                    booted,
                    rule.name,
                    lambda: _seal_again(booted, rule.name, file, (path.name, directory), before),
                    lambda: path.stat().st_size,
                )
            except OSError as error:  # a full disk of the host's
                why = (error.strerror or str(error)).lower()
                raise EnclaveError(
                    f"sealed file {rule.name}: {why}: what the program left in {rule.mount} was not sealed",
                    hint="make room where the sealed file lies, and run it again",
                ) from None


def _decrypt(file: SealedFile, path: Path, mode: int) -> ContentDigest:
    """Write its content to `path`; the digest of it."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as plain:

        def written() -> Iterator[bytes]:
            for piece in _pieces(file):
                plain.write(piece)
                yield piece

        return content_digest(written())


def _pieces(file: SealedFile | BinaryIO) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece


def _opened(directory: Path) -> int:
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _left(name: str, directory: int) -> BinaryIO:
    """What the program left under a name in a directory. Raises OSError if that is no regular file."""
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "something else", name)
    return os.fdopen(descriptor, "rb")


def _seal_again(booted: Booted, name: str, file: SealedFile, at: tuple[str, int], before: ContentDigest) -> None:
    try:
        left = _left(*at)
    except OSError:
        booted.control.event("notice", text=f"sealed file {name}: left as it was, the program has removed it")
        return
    with left as plain:
        if content_digest(_pieces(plain)) == before:
            return
        plain.seek(0)
        file.seek(0)
        file.truncate(0)
        for piece in _pieces(plain):
            file.write(piece)
    file.commit()
    booted.control.event("notice", text=f"sealed file {name}: sealed, root {file.root}")
