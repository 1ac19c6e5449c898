"""How a CAS's root secret is kept: by a file, a TPM, an SGX enclave, an SEV-SNP guest, and changes between them.

There is no SGX enclave and no SEV-SNP guest here: `strongroom.testing` stands in for Gramine and for the kernel, and
the TPM is one in software. Shares are in `test_unseal_shares.py`, another instance in `test_unseal_peer.py`.
"""

from __future__ import annotations

import errno
import json
import shutil

import pytest

from strongroom.attest.tee.tpm import Tpm
from strongroom.cas.start.authority import Authority
from strongroom.cas.state.root_secret import BEGUN, open_root_secret, read_record, rekey
from strongroom.cas.state.store import Store
from strongroom.cas.state.trust_disk import TrustDisk
from strongroom.cas.unseal.sgx import Sgx
from strongroom.cas.unseal.snp import Snp
from strongroom.cas.unseal.tpm import TpmSealed
from strongroom.crypto import CertificateAuthority
from strongroom.errors import (
    EnclaveError,
    FormatError,
    IntegrityError,
    LockedError,
    UnsupportedPlatformError,
    UsageError,
    WrongKeyError,
)
from strongroom.testing.attesters import FakeGramine, FakeMachine
from strongroom.testing.sev_guest import FakeSevGuest
from strongroom.testing.swtpm import SoftwareTpm, lacking
from tests.cas.unsealing import NOW, cas_root, opened

swtpm_only = pytest.mark.skipif(lacking() is not None, reason=f"{lacking()} is not installed: `make setup` says how")


def gramine(enclave: bytes = b"e" * 16, signer: bytes = b"s" * 16) -> FakeMachine:
    fake = FakeGramine(bytes, keys=("_sgx_mrenclave", "_sgx_mrsigner"))
    fake.keys |= {"_sgx_mrenclave": enclave, "_sgx_mrsigner": signer}
    return FakeMachine(fake)


def guest(**changes) -> tuple[FakeSevGuest, Snp]:
    fake = FakeSevGuest(**{"chip": b"one", "measurement": b"m" * 48, "policy": 0x30000} | changes)
    return fake, Snp(system=FakeMachine(fake), ioctl=fake.ioctl)


# A file


def test_a_new_cas_has_a_secret_of_its_own(tmp_path):
    one, other = (open_root_secret(tmp_path / name) for name in ("one", "other"))
    assert len(one) == 32 and one != other
    assert open_root_secret(tmp_path / "one") == one
    assert read_record(tmp_path / "one")["unseal"] == "trust-disk"
    assert one.hex() not in (tmp_path / "one" / "unseal.json").read_text()


def test_a_cas_of_before_goes_on_with_its_key(tmp_path):
    """A directory with `master.key` and a CA key in plain, as they were until now."""
    key = b"k" * 32
    (tmp_path / "master.key").write_bytes(key)
    plain = CertificateAuthority.create("Strongroom CAS root", now=NOW)
    (tmp_path / "root.key").write_bytes(plain.key.pem() + plain.certificate.pem())
    assert open_root_secret(tmp_path) == key
    assert cas_root(tmp_path, key) == plain.key.public.fingerprint
    sealed = (tmp_path / "root.key").read_bytes()
    assert b"PRIVATE KEY" not in sealed and b"BEGIN" not in sealed
    assert cas_root(tmp_path, key) == plain.key.public.fingerprint
    assert (tmp_path / "root.key").read_bytes() == sealed


def test_the_ca_key_of_another_secret_opens_nothing(tmp_path):
    cas_root(tmp_path, b"k" * 32)
    with pytest.raises(WrongKeyError, match=r"root\.key: is sealed under another root secret, or was changed"):
        cas_root(tmp_path, b"l" * 32)
    content = bytearray((tmp_path / "root.key").read_bytes())
    content[-1] ^= 1
    (tmp_path / "root.key").write_bytes(content)
    with pytest.raises(WrongKeyError, match="was changed"):
        cas_root(tmp_path, b"k" * 32)
    (tmp_path / "root.key").write_bytes(b"something else")
    with pytest.raises(FormatError, match="not the sealed key of a CAS"):
        cas_root(tmp_path, b"k" * 32)


# The way is written down


def test_another_way_than_the_one_that_was_chosen_is_refused(tmp_path):
    open_root_secret(tmp_path)
    with pytest.raises(UsageError, match="got sgx, and this CAS's root secret is kept by trust-disk") as caught:
        open_root_secret(tmp_path, Sgx(system=gramine()))
    assert "strongroom cas rekey --unseal sgx" in caught.value.hint
    (tmp_path / "unseal.json").unlink()
    with pytest.raises(UsageError, match="kept by trust-disk"):
        open_root_secret(tmp_path, Sgx(system=gramine()))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"version": 2, "unseal": "sgx"}',
        b'{"version": 1, "unseal": "paper"}',
        b"[" * 200_000,
    ],
)
def test_a_record_that_is_none(tmp_path, content):
    open_root_secret(tmp_path)
    (tmp_path / "unseal.json").write_bytes(content)
    with pytest.raises(FormatError, match="does not say how a root secret is kept"):
        open_root_secret(tmp_path)


def test_a_creation_that_was_killed_goes_on_in_its_way_alone(tmp_path):
    """Not in the way that a start takes which names none."""
    (tmp_path / BEGUN).write_bytes(b"sgx")
    with pytest.raises(UsageError, match="got trust-disk, and this CAS's root secret is kept by sgx"):
        open_root_secret(tmp_path)
    assert open_root_secret(tmp_path, Sgx(system=gramine())) == open_root_secret(tmp_path, Sgx(system=gramine()))


@pytest.mark.parametrize("lost", ["unseal.json", "box"])
def test_a_secret_that_is_lost_is_not_replaced(tmp_path, lost):
    sgx = Sgx(system=gramine())
    Store(tmp_path, secret=open_root_secret(tmp_path, sgx)).close()
    record = read_record(tmp_path)
    (tmp_path / "unseal.json").unlink()
    if lost == "box":
        (tmp_path / "unseal.json").write_text(json.dumps({k: v for k, v in record.items() if k != "box"}))
    with pytest.raises((WrongKeyError, FormatError)):
        open_root_secret(tmp_path, sgx)
    assert not (tmp_path / "master.key").exists()


# Platforms


def test_an_sgx_enclave_gets_its_secret_back_and_another_does_not(tmp_path):
    secret = open_root_secret(tmp_path, Sgx(system=gramine()))
    assert not (tmp_path / "master.key").exists()
    assert open_root_secret(tmp_path, Sgx(system=gramine(signer=b"t" * 16))) == secret
    with pytest.raises(WrongKeyError, match=r"unseal\.json: the key of sgx/_sgx_mrenclave does not open it"):
        open_root_secret(tmp_path, Sgx(system=gramine(enclave=b"f" * 16)))


def test_a_signer_s_enclaves_share_a_secret_that_is_sealed_to_the_signer(tmp_path):
    secret = open_root_secret(tmp_path, Sgx("_sgx_mrsigner", system=gramine()))
    assert open_root_secret(tmp_path, Sgx(system=gramine(enclave=b"f" * 16))) == secret
    with pytest.raises(FormatError, match="key: got '_sgx_mrsigner', wanted _sgx_mrenclave"):
        open_root_secret(tmp_path, Sgx("_sgx_mrenclave", system=gramine()))
    with pytest.raises(WrongKeyError):
        open_root_secret(tmp_path, Sgx(system=gramine(signer=b"t" * 16)))


def test_no_enclave_no_secret(tmp_path):
    with pytest.raises(UnsupportedPlatformError, match="sgx: no /dev/attestation/keys/_sgx_mrenclave"):
        open_root_secret(tmp_path / "a", Sgx(system=FakeMachine()))
    with pytest.raises(EnclaveError, match="or zeros, wanted 16 of a key"):
        open_root_secret(tmp_path / "b", Sgx(system=gramine(enclave=bytes(16))))
    with pytest.raises(UnsupportedPlatformError, match="snp: no /dev/sev-guest"):
        open_root_secret(tmp_path / "c", Snp(system=FakeMachine(), ioctl=lambda *_: None))
    for name in "abc":
        assert not (tmp_path / name / "unseal.json").exists()
        assert len(open_root_secret(tmp_path / name)) == 32  # it is new still, and may begin otherwise


@pytest.mark.parametrize("change", [{"chip": b"two"}, {"measurement": b"n" * 48}, {"policy": 0xB0000}])
def test_a_guest_gets_its_secret_back_and_another_does_not(tmp_path, change):
    """Another processor, another program, or a guest whose policy lets it be debugged."""
    secret = open_root_secret(tmp_path, guest()[1])
    assert open_root_secret(tmp_path, guest()[1]) == secret
    with pytest.raises(WrongKeyError, match="the key of snp does not open it"):
        open_root_secret(tmp_path, guest(**change)[1])


def test_a_guest_above_the_lowest_level_asks_for_its_own(tmp_path):
    fake, zero = guest(vmpl=2)
    with pytest.raises(EnclaveError, match=r"deriving the key failed: input/output error \(firmware 0x16, host 0x0\)"):
        open_root_secret(tmp_path, zero)
    two = Snp(2, system=FakeMachine(fake), ioctl=fake.ioctl)
    secret = open_root_secret(tmp_path, two)
    assert open_root_secret(tmp_path, zero) == secret  # the record says which
    fake.status = 0x27
    with pytest.raises(EnclaveError, match="failed with status 0x27"):
        open_root_secret(tmp_path, two)


def test_what_the_kernel_refuses_is_said(tmp_path):
    fake, snp = guest()
    fake.fail("open", errno.EACCES)
    with pytest.raises(UnsupportedPlatformError, match="permission denied"):
        open_root_secret(tmp_path, snp)
    fake.fail("ioctl", errno.ENOTTY)
    with pytest.raises(EnclaveError, match="deriving the key failed"):
        open_root_secret(tmp_path, snp)
    assert open_root_secret(tmp_path, snp) == open_root_secret(tmp_path, snp)


# A TPM


@pytest.fixture(scope="module")
def maker(tmp_path_factory):
    return tmp_path_factory.mktemp("maker")


@swtpm_only
def test_a_tpm_gives_the_secret_back_while_its_registers_are_the_same(tmp_path, maker):
    with SoftwareTpm.start(maker, state=tmp_path / "tpm") as swtpm:
        sealed, directory = TpmSealed(swtpm.tcti), tmp_path / "cas"
        secret = open_root_secret(directory, sealed)
        assert open_root_secret(directory, sealed) == secret
        with Tpm.open(swtpm.tcti) as tpm:
            tpm.extend(8, b"x" * 32)  # not one of those
            assert open_root_secret(directory, sealed) == secret
            tpm.extend(7, b"x" * 32)
        with pytest.raises(WrongKeyError, match="its registers are not what they were") as caught:
            open_root_secret(directory, sealed)
        assert "Secure Boot changed" in caught.value.hint
    with SoftwareTpm.start(maker, state=tmp_path / "tpm") as swtpm:  # as after a reboot
        assert open_root_secret(directory, TpmSealed(swtpm.tcti)) == secret
        with Tpm.open(swtpm.tcti) as tpm:
            tpm._esapi.clear(tpm._library.ESYS_TR.LOCKOUT)
        with pytest.raises(WrongKeyError, match="not of this TPM, or it was cleared since"):
            open_root_secret(directory, TpmSealed(swtpm.tcti))
    stranger, refused = tmp_path / "stranger", pytest.raises(WrongKeyError, match="not of this TPM")
    with SoftwareTpm.start(maker, state=stranger) as swtpm, refused:
        open_root_secret(directory, TpmSealed(swtpm.tcti))
    with pytest.raises(UnsupportedPlatformError, match="cannot open"):
        open_root_secret(directory, TpmSealed(swtpm.tcti))


@swtpm_only
def test_a_tpm_asks_for_the_pin_and_locks_itself(tmp_path, maker):
    with SoftwareTpm.start(maker, state=tmp_path / "tpm") as swtpm:
        directory = tmp_path / "cas"
        secret = open_root_secret(directory, TpmSealed(swtpm.tcti, pin=b"4711"))
        assert "4711" not in (directory / "unseal.json").read_text()
        assert open_root_secret(directory, TpmSealed(swtpm.tcti, pin=b"4711")) == secret
        with pytest.raises(UsageError, match="pin: the root secret is sealed to one"):
            open_root_secret(directory, TpmSealed(swtpm.tcti))
        for kind in (WrongKeyError, WrongKeyError, WrongKeyError, LockedError):
            with pytest.raises(kind) as caught:
                open_root_secret(directory, TpmSealed(swtpm.tcti, pin=b"0815"))
            assert "0815" not in str(caught.value)
        with pytest.raises(LockedError, match="has locked itself after too many wrong PINs"):
            open_root_secret(directory, TpmSealed(swtpm.tcti, pin=b"4711"))
        record = read_record(directory)
        for change in ({"private": "00" * 5000}, {"public": "00"}, {"pcrs": [99]}, {"pcrs": "7"}, {"pin": 1}):
            (directory / "unseal.json").write_text(json.dumps(record | change))
            with pytest.raises((FormatError, IntegrityError, EnclaveError, LockedError)):
                open_root_secret(directory, TpmSealed(swtpm.tcti, pin=b"4711"))


def test_a_pin_that_a_tpm_does_not_take():
    for pin in (b"x" * 33, b"x\0"):
        with pytest.raises(UsageError, match="pin: "):
            TpmSealed(pin=pin)


# Another way


def test_the_way_changes_and_the_cas_stays_the_same(tmp_path):
    secret = open_root_secret(tmp_path)
    before = opened(tmp_path, secret)
    ways = [Sgx(system=gramine()), guest()[1], TrustDisk(tmp_path), guest()[1]]
    for way in ways:
        rekey(tmp_path, secret, way)
        assert (tmp_path / "master.key").exists() == (way.way == "trust-disk")
        assert open_root_secret(tmp_path, way) == secret
        assert opened(tmp_path, secret) == before
    with pytest.raises(UsageError, match="kept by snp"):
        open_root_secret(tmp_path)


def test_another_cas_s_secret_is_not_kept(tmp_path):
    open_root_secret(tmp_path / "one")
    other = open_root_secret(tmp_path / "other")
    with pytest.raises(WrongKeyError, match=r"another one than unseal\.json was made of"):
        rekey(tmp_path / "one", other, Sgx(system=gramine()))
    assert read_record(tmp_path / "one")["unseal"] == "trust-disk"


def test_a_record_of_another_cas_opens_nothing(tmp_path):
    """The host puts a record of its own making beside somebody's database."""
    ours = open_root_secret(tmp_path / "ours", Sgx(system=gramine()))
    Store(tmp_path / "ours", secret=ours).close()
    Authority(tmp_path / "ours", ours, now=NOW, hosts=["localhost"])
    theirs = open_root_secret(tmp_path / "theirs", Sgx(system=gramine()))
    assert not (tmp_path / "theirs" / BEGUN).exists() or theirs != ours
    shutil.copy(tmp_path / "theirs" / "unseal.json", tmp_path / "ours" / "unseal.json")
    secret = open_root_secret(tmp_path / "ours", Sgx(system=gramine()))
    with pytest.raises(WrongKeyError):
        Store(tmp_path / "ours", secret=secret)
    with pytest.raises(WrongKeyError):
        cas_root(tmp_path / "ours", secret)
