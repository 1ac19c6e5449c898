"""`strongroom policy` as the owners of a policy meet it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from pathlib import Path

import pytest

from strongroom.cas.policy.owners import SignatureFile, sign_version
from strongroom.cli.main import main
from strongroom.crypto import SigningKey
from tests.cas.json_schema import is_valid
from tests.cas.test_schema import SCHEMA


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("print(1)\n")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "layer.py").write_text("x = 1\n")
    return tmp_path


def said(capsys, *words: str, status: int = 0):
    """What a command answers in JSON."""
    capsys.readouterr()
    assert main(["policy", words[0], "--json", *words[1:]]) == status
    return json.loads(capsys.readouterr().out)


def start(capsys) -> dict[str, str]:
    """A policy of two of alice, bob and carol; the keys' public halves by name."""
    assert main(["policy", "init", "--name", "acme/train", "--", "python", "train.py"]) == 0
    keys = {name: said(capsys, "key", f"{name}.key")["public"] for name in ("alice", "bob", "carol", "dave")}
    own(keys, 2, "alice", "bob", "carol")
    return keys


def fingerprint(name: str) -> str:
    return SigningKey.load(Path(f"{name}.key")).public.fingerprint


def own(keys: dict[str, str], threshold: int, *names: str) -> None:
    text = re.sub(r"\n\[owners\].*\Z", "", Path("policy.toml").read_text(), flags=re.DOTALL)
    lines = [f"\n[owners]\nthreshold = {threshold}\n[owners.keys]"] + [f'{name} = "{keys[name]}"' for name in names]
    Path("policy.toml").write_text(text + "\n".join(lines) + "\n")


def follow(version: int, digest: str) -> None:
    """Make `policy.toml` the next version, and keep what it was as `old.toml`."""
    text = Path("policy.toml").read_text()
    Path("old.toml").write_text(text)
    Path("policy.toml.signatures").unlink(missing_ok=True)
    text = re.sub(r"^version = .*(\nprevious = .*)?", f'version = {version}\nprevious = "{digest}"', text, flags=re.M)
    Path("policy.toml").write_text(text)


def test_owners_sign_one_after_the_other_and_the_last_applies(capsys):
    keys = start(capsys)
    first = said(capsys, "check", "policy.toml")
    assert (first["valid"], first["owners"], first["threshold"]) == (True, ["alice", "bob", "carol"], 2)
    assert said(capsys, "apply", "policy.toml", status=42)["code"] == "unauthorized"
    told = said(capsys, "sign", "policy.toml", "--key", "alice.key")
    assert (told["signed"], told["threshold"], told["not_yet"]) == (["alice"], 2, ["bob", "carol"])
    assert "1 of the 2" in said(capsys, "apply", "policy.toml", status=42)["error"]
    assert said(capsys, "sign", "policy.toml", "--key", "alice.key") == told  # once more changes nothing
    assert said(capsys, "sign", "policy.toml", "--key", "dave.key", status=42)["code"] == "unauthorized"
    assert said(capsys, "sign", "policy.toml", "--key", "carol.key")["not_yet"] == ["bob"]
    applied = said(capsys, "apply", "policy.toml")
    assert (applied["policy"], applied["version"], applied["digest"]) == ("acme/train", 1, first["digest"])
    assert len(SignatureFile.parse(Path("policy.toml.signatures").read_text()).signatures) == 2

    # Bob goes and signs that he does; dave comes.
    follow(2, first["digest"])
    own(keys, 2, "alice", "carol", "dave")
    assert said(capsys, "sign", "policy.toml", "--key", "bob.key", status=42)["hint"].startswith("--key names")
    told = said(capsys, "sign", "policy.toml", "--key", "bob.key", "--previous", "old.toml")
    assert (told["signed"], told["signed_before"], told["threshold_before"]) == ([], ["bob"], 2)
    for name in ("dave", "alice"):
        said(capsys, "sign", "policy.toml", "--key", f"{name}.key", "--previous", "old.toml")
    difference = said(capsys, "diff", "policy.toml")
    assert [(each["key"], each["text"]) for each in difference["changes"]] == [
        ("owners.keys.bob", "is no owner any more"),
        ("owners.keys.dave", f"is an owner now, with the key {fingerprint('dave')}"),
    ]
    assert said(capsys, "diff", "old.toml", "policy.toml") == difference
    second = said(capsys, "apply", "policy.toml")
    history = said(capsys, "history", "acme/train", "--pinned", first["digest"])["versions"]
    assert [each["digest"] for each in history] == [first["digest"], second["digest"]]
    assert [sorted(each["owners"]) for each in history] == [["alice", "bob", "carol"], ["alice", "carol", "dave"]]
    assert said(capsys, "history", "acme/train", "--pinned", "sha256:" + "0" * 64, status=24)["code"] == "rollback"

    # What a terminal shows.
    assert main(["policy", "history", "acme/train"]) == 0
    told = capsys.readouterr()
    assert f"version 1  {first['digest']}  signed by alice, carol\n" in told.out
    assert f"version 2  {second['digest']}  signed by alice, dave, bob\n    owners.keys.bob: is no" in told.out
    assert f"owners.keys.dave: is an owner now, with the key {fingerprint('dave')}\n" in told.out
    assert "compare its digest" in told.err
    assert [each["signed"] for each in history] == [None, ["alice", "dave", "bob"]]
    assert main(["policy", "history", "acme/train", "--pinned", first["digest"]]) == 0
    assert f"version 1  {first['digest']}  pinned\n" in capsys.readouterr().out
    assert main(["policy", "diff", "old.toml", "policy.toml"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "acme/train: version 1 -> 2"


def test_cas_apply_takes_the_signatures_too(capsys):
    start(capsys)
    assert main(["cas", "apply", "policy.toml"]) == 42
    for name in ("alice", "bob"):
        said(capsys, "sign", "policy.toml", "--key", f"{name}.key")
    assert main(["cas", "apply", "policy.toml"]) == 0


def test_a_document_that_was_changed_after_it_was_signed(capsys):
    start(capsys)
    said(capsys, "sign", "policy.toml", "--key", "alice.key")
    Path("policy.toml").write_text(Path("policy.toml").read_text() + "# one more word\n")
    assert said(capsys, "sign", "policy.toml", "--key", "bob.key", status=31)["code"] == "verification"
    assert "signatures.digest: got" in said(capsys, "apply", "policy.toml", status=31)["error"]


def test_sign_calls_nobody_s_signature_signed_that_it_has_not_verified(capsys):
    start(capsys)
    said(capsys, "sign", "policy.toml", "--key", "alice.key")
    path = Path("policy.toml.signatures")
    good = path.read_text()
    forged = json.loads(good)
    forged["signatures"][0]["signature"] = base64.b64encode(bytes(64)).decode()
    path.write_text(json.dumps(forged))
    for name in ("alice", "bob"):
        told = said(capsys, "sign", "policy.toml", "--key", f"{name}.key", status=31)
        assert "alice's does not match" in told["error"]
    file = SignatureFile.parse(good)
    stranger = sign_version(
        SigningKey.load(Path("dave.key")), name=file.policy, version=file.version, digest=file.digest
    )
    path.write_text(dataclasses.replace(file, signatures=(*file.signatures, stranger)).to_text())
    assert "is the key of no owner" in said(capsys, "sign", "policy.toml", "--key", "bob.key", status=42)["error"]
    assert path.read_text() == dataclasses.replace(file, signatures=(*file.signatures, stranger)).to_text()


def test_what_check_refuses_nobody_signs_compares_or_applies(capsys):
    """A carriage return ends a comment where newlines are translated, and is an error where they are not."""
    start(capsys)
    Path("old.toml").write_bytes(Path("policy.toml").read_bytes())
    text = Path("policy.toml").read_text().replace("allow_simulated", "# none is simulated\rallow_simulated")
    Path("policy.toml").write_bytes(text.encode())
    for words in (["check", "policy.toml"], ["diff", "old.toml", "policy.toml"], ["apply", "policy.toml"]):
        assert said(capsys, *words, status=11)
    assert said(capsys, "sign", "policy.toml", "--key", "alice.key", status=11)["code"] == "policy"
    assert not Path("policy.toml.signatures").exists()


def test_a_digest_is_that_of_the_file_s_bytes(capsys):
    start(capsys)
    data = Path("policy.toml").read_bytes().replace(b"\n", b"\r\n")
    Path("policy.toml").write_bytes(data)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    assert said(capsys, "check", "policy.toml")["digest"] == digest
    assert said(capsys, "sign", "policy.toml", "--key", "alice.key")["digest"] == digest
    assert said(capsys, "diff", "policy.toml", "policy.toml")["new"]["digest"] == digest


def test_diff_shows_what_hexadecimal_digits_say_and_how_much_it_leaves_out(capsys):
    main(["policy", "init", "--", "python", "train.py"])
    text = Path("policy.toml").read_text()
    for name, words in (("old", "train"), ("new", "upload everything"), ("long", "train " + "a " * 1500)):
        value = words if name == "long" else words.ljust(40).encode().hex()
        more = text.replace('["python", "train.py"]', f'["python", "train.py", "{value}"]')
        assert more != text
        Path(f"{name}.toml").write_text(more)
    assert main(["policy", "diff", "old.toml", "new.toml"]) == 0
    assert b"upload everything".hex() in capsys.readouterr().out
    assert main(["policy", "diff", "old.toml", "long.toml"]) == 0
    assert re.search(r" \.\.\. 1,[0-9]{3} more characters\n\Z", capsys.readouterr().out)


def test_show_gives_a_file_every_byte_and_a_terminal_nothing_to_act_on(capsys, monkeypatch):
    main(["policy", "init", "--name", "acme/train", "--", "python", "train.py"])
    text = Path("policy.toml").read_text() + "# private \ue000 use,\r\n\n"
    Path("policy.toml").write_bytes(text.encode())
    assert main(["policy", "apply", "policy.toml"]) == 0
    capsys.readouterr()
    assert main(["cas", "show", "acme/train"]) == 0
    assert capsys.readouterr().out == text
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["cas", "show", "acme/train"]) == 0
    assert capsys.readouterr().out.endswith("# private   use, \n\n")


def test_init_writes_a_document_that_is_sound_and_says_what_to_do(capsys, home):
    told = said(capsys, "init", "--", "python", "train.py", "--epochs", "3")
    assert told["files"] == ["parts/layer.py", "train.py"]
    text = (home / "policy.toml").read_text()
    assert (home / "policy.toml") == Path(told["path"])
    assert 'command = ["python", "train.py", "--epochs", "3"]' in text
    assert said(capsys, "check", "policy.toml")["policy"] == "my/train"
    # With every commented line of TOML in force it is sound too, but for the values that are to be filled in.
    full = re.sub(r"^# (?=\[|\w+ = )", "", text, flags=re.M)
    full = full.replace('previous = "sha256:..."', "")
    keys = [said(capsys, "key", f"{name}.key")["public"] for name in ("alice", "bob")]
    for key in keys:
        full = full.replace("MFkw...", key, 1)
    full = full.replace('key = "sha256:..."', f'key = "{fingerprint("alice")}"')
    (home / "full.toml").write_text(full)
    told = said(capsys, "check", "full.toml")
    assert (told["owners"], told["administrators"]) == (["alice", "bob"], ["alice"])
    assert (told["expires"], told["instances"]) == ("2027-01-01T00:00:00Z", 1)
    assert said(capsys, "init", "--", "python", "train.py", status=2)["error"].endswith("file exists")
    assert said(capsys, "init", status=2)["hint"] == "strongroom policy init -- python train.py"
    assert said(capsys, "init", "--out", "elsewhere/policy.toml", "--", "python", "train.py", status=2)


def test_init_writes_the_very_words_of_a_command(capsys, home):
    said(capsys, "init", "--", "python", "train.py", "${HOME}")
    assert '"$${HOME}"' in (home / "policy.toml").read_text()
    said(capsys, "check", "policy.toml")


def test_check_warns_of_what_hardly_anybody_wants(capsys, home):
    text = (Path(__file__).parents[1] / "fuzz" / "policy.toml").read_text()
    text = text.replace("2027-01-01T01", "2020-01-01T01").replace('may = ["log"]', 'may = ["apply"]')
    (home / "policy.toml").write_text(text)
    assert main(["policy", "check", "policy.toml"]) == 0
    shown = capsys.readouterr()
    assert "expires          2020-01-01T00:00:00Z" in shown.out
    warnings = [
        "policy.expires: has passed, and nothing attests under it",
        "administrators.bob: may apply, without owners: decides alone what gets the secrets",
        "program.command: holds the secret db, for every process of the enclave to see",
        "paths: what is below /shared is the host's, which reads and changes it",
    ]
    assert [line.removeprefix("strongroom: warning: ") for line in shown.err.splitlines()] == warnings


def test_a_line_s_number_is_shown_as_a_number(capsys, home):
    (home / "policy.toml").write_text("# \n" * 99 + "x = 1\n")
    assert main(["policy", "check", "policy.toml"]) == 11
    assert "policy.toml:100: policy document: unknown key 'x'" in capsys.readouterr().out


def test_an_administrator_who_may_applies_the_next_version(capsys, home):
    said(capsys, "init", "--name", "acme/train", "--", "python", "train.py")
    said(capsys, "key", "carol.key")
    table = f'\n[[administrators]]\nname = "carol"\nkey = "{fingerprint("carol")}"\nmay = ["apply"]\n'
    with (home / "policy.toml").open("a") as document:
        document.write(table)
    follow(2, said(capsys, "apply", "policy.toml")["digest"])
    second = said(capsys, "apply", "policy.toml", "--owner", "carol.key")
    assert [each["by"] for each in said(capsys, "history", "acme/train")["versions"]] == [None, "carol"]
    assert main(["policy", "history", "acme/train"]) == 0
    assert f"version 2  {second['digest']}  signed by carol\n" in capsys.readouterr().out
    follow(3, second["digest"])
    (home / "policy.toml").write_text((home / "policy.toml").read_text().replace('"apply"]', '"apply", "log"]'))
    assert (
        "administrators: are other ones"
        in said(capsys, "apply", "policy.toml", "--owner", "carol.key", status=42)["error"]
    )


def test_check_says_each_problem_by_line_and_key(capsys, home):
    said(capsys, "init", "--", "python", "train.py")
    text = (home / "policy.toml").read_text().replace('role = "program"', 'rol = "job"')
    (home / "policy.toml").write_text(text)
    line = text[: text.index("rol = ")].count("\n") + 1
    told = said(capsys, "check", "policy.toml", status=11)
    found = {each["key"]: (each["line"], each["hint"]) for each in told["problems"]}
    assert (found["policy.rol"], told["valid"], told["exit_status"]) == ((line, "did you mean role?"), False, 11)
    assert set(found) == {"policy.rol", "policy.role"}
    assert main(["policy", "check", "policy.toml"]) == 11
    out, err = capsys.readouterr()
    assert f"policy.toml:{line}: policy: unknown key 'rol'; known here: " in out
    assert "policy.toml: 2 problems" in err
    (home / "bad.toml").write_text("a = 1\nb = [\n")
    assert said(capsys, "check", "bad.toml", status=11)["problems"][0]["line"] == 2
    (home / "bad.toml").write_bytes(b"\xff")
    assert said(capsys, "check", "bad.toml", status=11)["code"] == "policy"


def test_the_schema_is_printed(capsys):
    assert said(capsys, "schema") == SCHEMA
    assert not is_valid({}, SCHEMA)


@pytest.mark.parametrize(
    "words",
    [
        ["history", "train"],
        ["history", "acme/train", "--pinned", "abc"],
        ["diff", "policy.toml", "policy.toml", "--cas", "https://127.0.0.1:1"],
        ["apply", "missing.toml"],
        ["apply", "policy.toml", "--cas", "https://127.0.0.1:1"],
        ["apply", "policy.toml", "--signatures", "missing"],
    ],
)
def test_wrong_usage_is_said(capsys, words):
    main(["policy", "init", "--", "python", "train.py"])
    assert said(capsys, *words, status=2)["code"] == "usage"


def test_the_administrator_s_key_is_enough_where_there_are_no_owners(capsys, home):
    main(["policy", "init", "--", "python", "train.py"])
    assert said(capsys, "apply", "policy.toml")["version"] == 1
    assert "policy apply" in said(capsys, "sign", "policy.toml", status=42)["hint"]
    assert main(["policy"]) == 2


def test_check_says_of_a_service_at_a_port_where_no_program_listens(capsys):
    assert main(["policy", "init", "--name", "acme/train", "--", "python", "train.py"]) == 0
    with Path("policy.toml").open("a") as file:
        file.write('\n[mesh]\npublish = [{ name = "api", port = 80 }]\n')
    capsys.readouterr()
    assert main(["policy", "check", "policy.toml"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "mesh.publish.port: api: got 80: a program in an enclave listens at ports from 1,024 on" in said


@pytest.mark.parametrize(
    ("role", "tls", "says"),
    [
        ("service", "enclave", "egress: this launcher cannot enforce it"),
        ("program", "program", "egress: files.example.com:443: the program itself judges who answers there"),
    ],
)
def test_check_says_of_hosts_outside_what_is_not_enforced(capsys, role, tls, says):
    assert main(["policy", "init", "--name", "acme/train", "--role", role, "--", "python", "train.py"]) == 0
    with Path("policy.toml").open("a") as file:
        file.write(f'\n[[egress]]\nhost = "files.example.com"\nport = 443\nca = "system"\ntls = "{tls}"\n')
    capsys.readouterr()
    assert main(["policy", "check", "policy.toml"]) == 0
    said = capsys.readouterr().err
    assert says in " ".join(said.split())
