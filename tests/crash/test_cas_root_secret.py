"""A CAS killed between any two changes to its directory, while its root secret is made, taken over or kept anew."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from strongroom.cas.start.authority import Authority
from strongroom.cas.state.root_secret import open_root_secret, read_record, rekey
from strongroom.cas.state.trust_disk import TrustDisk
from strongroom.cas.unseal.sgx import Sgx
from strongroom.cas.unseal.shamir import combine
from strongroom.cas.unseal.share_files import ShareFile
from strongroom.cas.unseal.shares import Shares
from strongroom.crypto import CertificateAuthority
from strongroom.errors import UsageError
from strongroom.testing.attesters import FakeGramine, FakeMachine
from tests.cas.unsealing import KEYS, NOW, cas_root, holders, opened

CHANGES = ("open", "link", "replace", "unlink", "mkdir", "fsync")


class Killed(BaseException):
    pass


@contextmanager
def killed_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of the system calls that change a directory, that one and all after it are not made."""
    made: list[str] = []

    def wrap(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **options: object) -> object:
            if name == "open" and not (isinstance(args[1], int) and args[1] & os.O_CREAT):
                return call(*args, **options)
            if len(made) >= number:
                raise Killed
            made.append(name)
            return call(*args, **options)

        return wrapped

    with monkeypatch.context() as patched:
        for name in CHANGES:
            patched.setattr(os, name, wrap(name, getattr(os, name)))
        yield


def killed_everywhere(
    directory: Path, monkeypatch: pytest.MonkeyPatch, begin: Callable[[Path], None], act: Callable[[Path], object]
) -> Iterator[Path]:
    """The directory as each of those kills leaves it, and last as none does."""
    number, survived = 0, False
    while not survived:
        shutil.rmtree(directory, ignore_errors=True)
        begin(directory)
        with killed_at(number, monkeypatch):
            try:
                act(directory)
                survived = True
            except Killed:
                number += 1
        yield directory
    assert number > 3


def sgx() -> Sgx:
    fake = FakeGramine(bytes, keys=("_sgx_mrenclave",))
    fake.keys["_sgx_mrenclave"] = b"e" * 16
    return Sgx(system=FakeMachine(fake))


def nothing(directory: Path) -> None:
    del directory


@pytest.mark.parametrize("way", [TrustDisk, lambda directory: sgx()], ids=["trust-disk", "sgx"])
def test_creation(tmp_path, monkeypatch, way):
    def create(directory: Path) -> None:
        secret = open_root_secret(directory, way(directory))
        Authority(directory, secret, now=NOW, hosts=["localhost"])

    for directory in killed_everywhere(tmp_path / "cas", monkeypatch, nothing, create):
        secret = open_root_secret(directory, way(directory))
        name = cas_root(directory, secret)
        assert open_root_secret(directory, way(directory)) == secret
        assert cas_root(directory, secret) == name
    assert opened(directory, secret) == (name, b"swordfish")


def test_creation_by_shares(tmp_path, monkeypatch):
    """Once the record is there, the shares are: those of a set that never took effect open nothing."""

    def shares(directory: Path) -> Shares:
        return Shares(directory, holders(*KEYS), 2)

    recorded = 0
    for directory in killed_everywhere(
        tmp_path / "cas", monkeypatch, nothing, lambda directory: open_root_secret(directory, shares(directory))
    ):
        if read_record(directory) is None:
            secret = open_root_secret(directory, shares(directory))
        else:
            recorded += 1
            with pytest.raises(UsageError, match="it listens nowhere"):
                open_root_secret(directory, shares(directory))
            secret = shared_out(directory)
        assert shared_out(directory) == secret
    assert recorded


def shared_out(directory: Path) -> bytes:
    """The secret by the shares of the set that the record names."""
    record = read_record(directory)
    assert record is not None
    files = [ShareFile.load(path) for path in directory.glob("shares-*/*.share")]
    named = [file for file in files if file.set.to_wire()["salt"] == record["salt"]]
    assert len(named) == 3
    return combine({file.index: file.open(KEYS[file.holder]) for file in named[:2]})


def test_taking_over_a_ca_key_in_plain(tmp_path, monkeypatch):
    key = b"k" * 32
    plain = CertificateAuthority.create("Strongroom CAS root", now=NOW)

    def begin(directory: Path) -> None:
        directory.mkdir()
        (directory / "master.key").write_bytes(key)
        (directory / "root.key").write_bytes(plain.key.pem() + plain.certificate.pem())

    for directory in killed_everywhere(
        tmp_path / "cas", monkeypatch, begin, lambda directory: cas_root(directory, open_root_secret(directory))
    ):
        assert cas_root(directory, open_root_secret(directory)) == plain.key.public.fingerprint
        assert b"PRIVATE" not in (directory / "root.key").read_bytes()


@pytest.mark.parametrize(("before", "after"), [("trust-disk", "sgx"), ("sgx", "trust-disk"), ("sgx", "sgx")])
def test_another_way(tmp_path, monkeypatch, before, after):
    """Whichever way the record names opens it, and no key is left in a file that it does not name."""
    secrets = {}

    def way(name: str, directory: Path) -> TrustDisk | Sgx:
        return TrustDisk(directory) if name == "trust-disk" else sgx()

    def begin(directory: Path) -> None:
        secrets[directory] = open_root_secret(directory, way(before, directory))

    named = set()
    for directory in killed_everywhere(
        tmp_path / "cas",
        monkeypatch,
        begin,
        lambda directory: rekey(directory, secrets[directory], way(after, directory)),
    ):
        record = read_record(directory)
        assert record is not None
        named.add(record["unseal"])
        assert open_root_secret(directory, way(record["unseal"], directory)) == secrets[directory]
        assert (directory / "master.key").exists() == (record["unseal"] == "trust-disk")
    assert named == {before, after}
