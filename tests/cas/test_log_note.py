"""Heads as C2SP's checkpoints: those of public logs verify, and nothing bent does."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.cas.log.note import (
    MAX_NOTE,
    Checkpoint,
    Note,
    WitnessKey,
    cosign,
    log_vkey,
    sign_checkpoint,
    verify_cas_checkpoint,
    verify_checkpoint,
)
from strongroom.crypto import PublicKey, SigningKey, digest
from strongroom.crypto.notes import Ed25519Key
from strongroom.errors import FormatError, StrongroomError, VerificationError

VECTORS = Path(__file__).parents[1] / "vectors" / "checkpoints"
REKOR = PublicKey(
    base64.b64decode(
        "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE2G2Y+2tabdTV5BcGiBIx0a9fAFwrkBbmLSGtks4L3qX6yYY0zufBnhC8Ur/iy55GhWP/9A/bY2LhC30M9+RYtw=="
    )
)
NAVIGLI = "witness.navigli.sunlight.geomys.org+a3e00fe2+BNy/co4C1Hn1p+INwJrfUlgz7W55dSZReusH/GhUhJ/G"

KEY, OTHER = SigningKey.generate(), SigningKey.generate()
WITNESS = Ed25519Key.generate()
ROOT = digest(b"root")
NOTE = sign_checkpoint(7, ROOT, KEY)
CAS_ROOT = KEY.public.fingerprint


def test_the_checkpoint_of_another_log_verifies_under_its_ecdsa_key():
    note = Note.parse((VECTORS / "rekor.note").read_text())
    checkpoint = verify_checkpoint(note, "rekor.sigstore.dev", REKOR)
    assert checkpoint.size == 75408393
    assert str(note) == (VECTORS / "rekor.note").read_text()
    with pytest.raises(VerificationError, match="is not signed by"):
        verify_checkpoint(note, "rekor.sigstore.dev", KEY.public)


def test_the_cosignature_of_a_public_witness_verifies():
    text = (VECTORS / "cosigned.note").read_text()
    key = WitnessKey.parse(NAVIGLI)
    assert str(key) == NAVIGLI
    assert key.verify(Note.parse(text)) == 1785704691
    with pytest.raises(VerificationError, match="does not match its key"):
        key.verify(Note.parse(text.replace("185550722", "185550723")))


def test_a_head_verifies_under_the_cas_s_root_alone():
    assert verify_cas_checkpoint(Note.parse(str(NOTE)), CAS_ROOT, KEY.public) == Checkpoint(
        f"strongroom-cas/{CAS_ROOT.removeprefix('sha256:')}", 7, ROOT
    )
    # The key ID is the beginning of the root's fingerprint: nothing else is needed to configure a witness.
    assert log_vkey(KEY.public).split("+")[1] == CAS_ROOT.removeprefix("sha256:")[:8]


@pytest.mark.parametrize(
    ("note", "root", "key", "says"),
    [
        (NOTE, OTHER.public.fingerprint, KEY.public, "its key is"),
        (NOTE, OTHER.public.fingerprint, OTHER.public, "is not signed by"),
        (NOTE, CAS_ROOT, OTHER.public, "its key is"),
        (Note(NOTE.text.replace("\n7\n", "\n8\n"), NOTE.signatures), CAS_ROOT, KEY.public, "does not match"),
        (Note(NOTE.text, ()), CAS_ROOT, KEY.public, "is not signed by"),
    ],
    ids=["root", "root and key", "key", "text", "no signature"],
)
def test_a_head_of_another_cas_or_another_text_is_refused(note, root, key, says):
    with pytest.raises(VerificationError, match=says):
        verify_cas_checkpoint(note, root, key)


def test_a_signature_of_a_known_key_that_fails_refuses_the_note_though_another_holds():
    bent = NOTE.signatures[0]
    other = sign_checkpoint(8, ROOT, KEY).signatures[0]
    with pytest.raises(VerificationError, match="does not match"):
        verify_cas_checkpoint(Note(NOTE.text, (bent, other)), CAS_ROOT, KEY.public)


def test_a_text_of_another_origin_is_refused_though_the_key_signed_it():
    text = Checkpoint("strongroom-cas/elsewhere", 7, ROOT).text
    from strongroom.cas.log.note import NoteSignature, log_key_id
    from strongroom.crypto.notes import sign_der

    name = f"strongroom-cas/{CAS_ROOT.removeprefix('sha256:')}"
    signed = Note(text, (NoteSignature(name, log_key_id(KEY.public), sign_der(KEY, text.encode())),))
    with pytest.raises(VerificationError, match="is of the log"):
        verify_cas_checkpoint(signed, CAS_ROOT, KEY.public)


def test_cosignatures_bind_time_text_and_key():
    line = cosign(NOTE.text, "w.example/1", WITNESS, now=1_700_000_000)
    key = WitnessKey("w.example/1", WITNESS.public)
    cosigned = Note.parse(str(NOTE.with_signatures([line])))
    assert key.verify(cosigned) == 1_700_000_000
    assert verify_cas_checkpoint(cosigned, CAS_ROOT, KEY.public).size == 7
    assert key.verify(NOTE) is None
    assert WitnessKey("w.example/2", WITNESS.public).verify(cosigned) is None
    later = type(line)(line.name, line.key_id, (1_700_000_001).to_bytes(8, "big") + line.value[8:])
    with pytest.raises(VerificationError, match="does not match its key"):
        key.verify(NOTE.with_signatures([later]))
    with pytest.raises(VerificationError, match="wanted 72"):
        key.verify(NOTE.with_signatures([type(line)(line.name, line.key_id, line.value + b"\0")]))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "text\n\n",
        str(NOTE)[:-1],
        str(NOTE) + "\n",
        str(NOTE).replace("\u2014", "-"),
        str(NOTE).replace("\n7\n", "\n7\r\n"),
        NOTE.text + "\n\u2014 name\n",
        NOTE.text + "\n\u2014 na+me QUFBQUFB\n",
        NOTE.text + "\n\u2014 name QUFB\n",
        NOTE.text + "\n\u2014 name QUFBQUE\n",
        NOTE.text + "\n\u2014 name QUFBQUF=\n",
        NOTE.text + "\n" + str(NOTE.signatures[0]) * 65,
        "x" * MAX_NOTE + str(NOTE),
    ],
)
def test_what_is_no_note_is_refused(text):
    with pytest.raises(FormatError, match="note"):
        Note.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "o\n1\n",
        "o\n01\nAAAA\n",
        "o\n-1\nAAAA\n",
        "o\n1\nAAAA\n",
        NOTE.text + "\n",
        NOTE.text + "extension\n" * 17,
        NOTE.text.rstrip("\n"),
        NOTE.text.replace("\n7\n", "\n7 \n"),
        NOTE.text.replace("\n7\n", "\n\u0667\n"),
        NOTE.text.replace("\n7\n", f"\n{1 << 63}\n"),
        "\n7\n" + NOTE.text.split("\n")[2] + "\n",
    ],
)
def test_what_is_no_checkpoint_is_refused(text):
    with pytest.raises(FormatError, match="checkpoint"):
        Checkpoint.parse(text)


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "name",
        "name+00000000+AAAA",
        NAVIGLI[:-4],
        NAVIGLI.replace("a3e00fe2", "a3e00fe3"),
        NAVIGLI.replace("witness.", "witness "),
        NAVIGLI.replace("+BN", "+AN"),
        log_vkey(KEY.public),
    ],
)
def test_what_is_no_witness_s_key_is_refused(vkey):
    with pytest.raises(FormatError, match="witness"):
        WitnessKey.parse(vkey)


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, len(str(NOTE)) - 1), character=st.characters())
def test_no_character_of_a_signed_head_can_be_changed(at, character):
    text = str(NOTE)
    bent = text[:at] + character + text[at + 1 :]
    if bent == text:
        return
    with pytest.raises(StrongroomError) as caught:
        verify_cas_checkpoint(Note.parse(bent), CAS_ROOT, KEY.public)
    assert isinstance(caught.value, (FormatError, VerificationError))
