"""Keys in a token, by SoftHSM: they sign, log in, and fail in words."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.cas.policy.version import sign_policy, verify_policy
from strongroom.cli.main import main
from strongroom.crypto import SigningKey
from strongroom.crypto.pkcs11 import PIN_VARIABLE, Pkcs11Key, Pkcs11Uri
from strongroom.errors import (
    FormatError,
    LockedError,
    MissingDependencyError,
    StrongroomError,
    UnauthorizedError,
    UsageError,
    VerificationError,
)
from tests.cas.world import document

pytest.importorskip("pkcs11")
_MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)
MODULE = next((path for path in _MODULES if Path(path).exists()), "")
needs_softhsm = pytest.mark.skipif(not MODULE or not shutil.which("softhsm2-util"), reason="SoftHSM is not installed")
PIN = "2468-pin"


@dataclass
class Token:
    pin_file: Path

    def uri(self, label: str = "owner", *, name: str = "strongroom", pin: Path | None = None) -> str:
        return f"pkcs11:token={name};object={label}?module-path={MODULE}&pin-source=file:{pin or self.pin_file}"


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Token]:
    directory = tmp_path_factory.mktemp("softhsm")
    (directory / "tokens").mkdir()
    configuration = directory / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {directory / 'tokens'}\nobjectstore.backend = file\n")
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(configuration)  # the module reads it when it is loaded
    command = ["softhsm2-util", "--init-token", "--free", "--label", "strongroom", "--pin", PIN, "--so-pin", "so-pin"]
    subprocess.run(command, check=True, capture_output=True)
    pin_file = directory / "pin"
    pin_file.write_text(PIN + "\n")
    made = Token(pin_file)
    Pkcs11Key.generate(made.uri()).close()
    yield made
    if before is None:
        del os.environ["SOFTHSM2_CONF"]
    else:
        os.environ["SOFTHSM2_CONF"] = before


@needs_softhsm
def test_it_signs_in_a_process_that_has_loaded_tensorflow(token):
    """Which loads another cryptographic library under the names that the token's module calls."""
    if find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is not installed")
    source = """
import sys
import tensorflow
from strongroom.crypto.pkcs11 import Pkcs11Key
key = Pkcs11Key.open(sys.argv[1])
key.public.verify(key.sign(b"text"), b"text")
print("signed")
"""
    done = subprocess.run([sys.executable, "-c", source, token.uri()], capture_output=True, text=True)
    assert done.stdout == "signed\n", done.stderr[-2000:]


@needs_softhsm
def test_it_signs_what_others_verify(token, tmp_path):
    key = Pkcs11Key.open(token.uri())
    signature = sign_policy("text", key)
    verify_policy("text", signature, key.public)
    with pytest.raises(VerificationError):
        verify_policy("other", signature, key.public)
    assert repr(key) == f"Pkcs11Key({key.public.fingerprint})"
    again = Pkcs11Key.open(token.uri())
    assert again.public == key.public != SigningKey.generate().public
    key.close()
    again.close()


@needs_softhsm
def test_it_administers_a_policy_by_login_on_each_connection(token, cas):
    key = Pkcs11Key.open(token.uri())
    with cas.owner(key) as client:
        client.apply(document(key, name="hsm/train", vendor_root=cas.vendor.root_digest))
        client.put_secret("hsm/train", "token", b"x")
        assert client.policies()[0]["policy"] == "hsm/train"
        assert [entry["event"] for entry in client.log() if entry["policy"] == "hsm/train"] == ["policy", "secret"]
    key.close()


@needs_softhsm
def test_the_pin_may_be_in_the_environment_and_is_in_no_message(token, monkeypatch):
    bare = token.uri().partition("&")[0]
    with pytest.raises(UsageError, match=f"PIN of strongroom/owner: is missing.*|{PIN_VARIABLE}"):
        Pkcs11Key.open(bare)
    monkeypatch.setenv(PIN_VARIABLE, PIN)
    Pkcs11Key.open(bare).close()
    monkeypatch.setenv(PIN_VARIABLE, "1357-wrong")
    with pytest.raises(UnauthorizedError, match="PIN of strongroom/owner: is wrong") as wrong:
        Pkcs11Key.open(bare)
    assert "1357" not in f"{wrong.value!r}{wrong.value.hint}"
    Pkcs11Key.open(token.uri()).close()


@needs_softhsm
@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"label": "nobody"}, UsageError, "the token has no key of the name strongroom/nobody"),
        ({"name": "another"}, UsageError, "the module has no token of the name another"),
        ({"pin": Path("/nowhere/pin")}, UsageError, "pin-source: /nowhere/pin: no such file or directory"),
    ],
)
def test_what_is_missing_is_named(token, changes, error, says):
    with pytest.raises(error, match=says):
        Pkcs11Key.open(token.uri(**changes))


@needs_softhsm
def test_a_key_is_made_once(token):
    with pytest.raises(UsageError, match="strongroom/owner exists already"):
        Pkcs11Key.generate(token.uri())


@needs_softhsm
def test_a_key_on_another_curve_is_refused(token):
    import pkcs11
    from pkcs11.util.ec import encode_named_curve_parameters

    with pkcs11.lib(MODULE).get_token(token_label="strongroom").open(rw=True, user_pin=PIN) as session:
        parameters = session.create_domain_parameters(
            pkcs11.KeyType.EC, {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp384r1")}, local=True
        )
        parameters.generate_keypair(store=True, label="p384", id=b"\7")
    with pytest.raises(FormatError, match="strongroom/p384 is no elliptic-curve key on P-256"):
        Pkcs11Key.open(token.uri("p384"))


def test_a_missing_module_is_named():
    pin = "&pin-source=file:/dev/null"
    with pytest.raises(MissingDependencyError, match=r"pkcs11 module: /nowhere/lib\.so cannot be loaded"):
        Pkcs11Key.open(f"pkcs11:object=a?module-path=/nowhere/lib.so{pin}")


def test_a_locked_token_says_so():
    import pkcs11

    from strongroom.crypto.pkcs11 import _failed

    uri = Pkcs11Uri.parse("pkcs11:token=T;object=a?module-path=/x")
    assert isinstance(_failed(pkcs11, uri, pkcs11.exceptions.PinLocked()), LockedError)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file:/x", "wanted pkcs11:"),
        ("pkcs11:object=a", "says no module-path"),
        ("pkcs11:token=T?module-path=/x", "names no key"),
        ("pkcs11:object=a;object=b?module-path=/x", "object appears twice"),
        ("pkcs11:object=a;colour=red?module-path=/x", "got 'colour'"),
        ("pkcs11:object?module-path=/x", "got 'object'"),
        ("pkcs11:object=%zz?module-path=/x", "got 'object'"),
        ("pkcs11:object=%ff?module-path=/x", "object is no text"),
        ("pkcs11:object=a%00?module-path=/x", "object is no text"),
        ("pkcs11:object=a;type=public?module-path=/x", "wanted private"),
        ("pkcs11:object=a;slot-id=x?module-path=/x", "slot-id, wanted a number"),
        ("pkcs11:object=a?module-path=/x&pin-value=1234", "pin-value is not taken"),
        ("pkcs11:object=a?module-path=/x&pin-source=|cat", "pin-source, wanted file:FILE"),
        ("pkcs11:object=" + "a" * 5000, "wanted pkcs11:"),
    ],
)
def test_uris_are_read_strictly(text, says):
    with pytest.raises(StrongroomError, match=says.replace("|", r"\|")) as refused:
        Pkcs11Uri.parse(text)
    assert "1234" not in f"{refused.value}{refused.value.hint}"


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.sampled_from("pkcs11:;?&=%0aA/tokenbjcmdul-phi"), max_size=60), st.booleans())
def test_any_text_is_a_uri_or_is_refused_in_words(text, begun):
    try:
        uri = Pkcs11Uri.parse(f"pkcs11:object=a{text}?module-path=/x" if begun else text)
    except UsageError:
        return
    assert uri.module and (uri.label is not None or uri.identifier is not None)


@needs_softhsm
def test_the_command_line_makes_signs_with_and_applies_by_a_key_in_a_token(token, cas, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path / "home"))
    uri = token.uri("command")
    assert main(["policy", "key", "--generate", "--json", uri]) == 0
    made = json.loads(capsys.readouterr().out)
    owners = f'[owners]\nthreshold = 1\n[owners.keys]\nhsm = "{made["public"]}"\n'
    key = Pkcs11Key.open(uri)
    path = tmp_path / "policy.toml"
    path.write_text(document(key, name="token/train", vendor_root=cas.vendor.root_digest, more=owners))
    key.close()
    where = ["--cas", cas.address.url, "--cas-root", cas.address.cas_root, "--owner", uri]
    assert main(["policy", "sign", str(path), "--key", uri]) == 0
    assert main(["policy", "apply", str(path), *where]) == 0
    assert main(["cas", "policies", *where]) == 0
    assert "token/train" in capsys.readouterr().out
    assert main(["policy", "key", "--generate", uri]) == 2
    assert main(["policy", "key", "--generate", str(tmp_path / "x")]) == 2


def test_a_uri_is_read_whole():
    uri = Pkcs11Uri.parse(
        "pkcs11:token=My%20Token;id=%01%ff;slot-id=3;type=private?module-path=/x.so&pin-source=file:/p"
    )
    assert (uri.token, uri.identifier, uri.slot, uri.module, uri.pin_file) == (
        "My Token",
        b"\1\xff",
        3,
        "/x.so",
        Path("/p"),
    )
