"""Bad input at the command line: one line that says what is wrong, a hint, its own exit status, no stack trace."""

import os
import re
import shutil
import socket
from pathlib import Path

import pytest

from strongroom import errors
from strongroom.cas.client.address import CasAddress
from strongroom.cas.policy.version import Program, VaultRule
from strongroom.cli.main import main
from strongroom.cli.run.verb import boot_config
from strongroom.cli.workspace import Home, SealedVault, write_policy
from strongroom.enclave import sandbox
from strongroom.enclave.measure import measure
from strongroom.errors import StrongroomError, from_wire, printable


@pytest.fixture
def home(tmp_path, monkeypatch, warm_home):
    monkeypatch.chdir(tmp_path)
    return Home.open()


@pytest.fixture
def refused(capfd):
    """Runs a command that must fail with this status, and gives its error line."""

    def check(status, *argv):
        assert main([str(word) for word in argv]) == status
        err = capfd.readouterr().err
        assert "Traceback" not in err
        lines = [line for line in err.splitlines() if line.startswith("strongroom: error: ")]
        assert len(lines) == 1, err
        return lines[0], next((line for line in err.splitlines() if line.startswith("strongroom: hint: ")), "")

    return check


@pytest.fixture
def sealed(home, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "numbers").write_bytes(bytes(range(256)) * 1000)
    assert main(["seal", "data"]) == 0
    return SealedVault.at(tmp_path / "data.vault")


def largest(sealed):
    return max((p for p in sealed.path.iterdir() if p.is_file()), key=lambda p: p.stat().st_size)


def test_seal_and_unseal_give_back_what_went_in(sealed, tmp_path, capfd):
    assert main(["unseal", "data.vault", "again"]) == 0
    assert (tmp_path / "again" / "numbers").read_bytes() == bytes(range(256)) * 1000
    assert sealed.key_path.stat().st_mode & 0o777 == 0o600


def test_a_wrong_key(sealed, refused, tmp_path):
    (tmp_path / "other").write_text("x")
    assert main(["seal", "other"]) == 0
    line, hint = refused(21, "unseal", "data.vault", "x", "--key", "other.vault.key")
    assert "another key" in line
    assert "key file" in hint
    assert not list(tmp_path.glob("x/*"))


def test_a_truncated_sealed_file(sealed, refused):
    os.truncate(largest(sealed), largest(sealed).stat().st_size // 2)
    line, _ = refused(22, "unseal", "data.vault", "x")
    assert "numbers" in line


def test_a_flipped_bit(sealed, refused):
    path = largest(sealed)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused(23, "unseal", "data.vault", "x")


def test_an_old_version(sealed, refused, tmp_path):
    from strongroom import vault

    shutil.copytree(sealed.path, tmp_path / "old")
    for number in range(2):
        with vault.open(sealed.path, "r+", key=sealed.key(), anchor=sealed.anchor) as opened:
            opened.write_bytes("new", bytes([number]))
    shutil.rmtree(sealed.path)
    shutil.move(tmp_path / "old", sealed.path)
    refused(24, "unseal", "data.vault", "x")
    assert main(["unseal", "data.vault", "x", "--no-freshness"]) == 0


def test_arguments_that_make_no_sense(sealed, refused):
    for argv in (
        ("seal", "nothing-there"),
        ("seal", "data"),  # data.vault exists
        ("unseal", "data"),
        ("unseal", "data.vault", "x", "--key", "nowhere"),
        ("run",),
        ("run", "--data", "data", "--", "python", "x.py"),
        ("run", "--", "python", "x.py"),
        ("run", "--env", "novalue", "--", "true"),
        ("run", "--cas", "https://127.0.0.1:1", "--", "true"),
        ("run", "--data", "data.vault:/out", "--", "true"),
        ("serve", "data.vault"),
        ("predict", "--url", "http://127.0.0.1:1", "--policy", "a/b"),
        ("measure",),
    ):
        refused(2, *argv)


def test_input_of_a_prediction_that_is_not_what_its_name_says(home, refused, tmp_path):
    digest = "sha256:" + "0" * 64
    (tmp_path / "policy.toml").write_text(
        write_policy(
            name="a/b", role="service", owner=digest, measurement="0" * 96, vendor_root=digest, program=None, vaults=()
        )
    )
    given = ("--policy", "policy.toml", "--cas-root", digest, "--cas", "https://127.0.0.1:1")

    def predict(content, name="x.json"):
        (tmp_path / name).write_text(content)
        return refused(10, "predict", "--url", "https://127.0.0.1:1", *given, name)[0]

    assert "input: x.json is malformed JSON at line 2, column 7: expecting value" in predict("[[1, 2],\n [55, ")
    assert "input: x.json holds an array whose rows differ in length" in predict('{"x": [[1, 2], [3]]}')
    assert "input: x.npy is not .npy, .npz or .json" in predict("[[1]]", "x.npy")


def test_a_vault_without_its_anchor(sealed, refused):
    sealed.anchor.path.unlink()
    _, hint = refused(2, "unseal", "data.vault", "x")
    assert "--no-freshness" in hint


def test_a_port_in_use(home, refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        line, hint = refused(52, "cas", "start", "--port", taken.getsockname()[1])
    assert "in use" in line
    assert "port 0" in hint


def test_a_port_in_use_for_a_service(home, refused, tmp_path):
    (tmp_path / "model.onnx").write_text("anything")
    assert main(["seal", "model.onnx"]) == 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused(52, "serve", "model.onnx.vault", "--port", taken.getsockname()[1])


def test_a_model_that_is_not_onnx(home, refused, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"PK\x03\x04 a torch.save archive")
    assert main(["seal", "model.onnx"]) == 0
    line, hint = refused(12, "serve", "model.onnx.vault", "--port", 0)
    assert "zip archive" in line
    assert "ONNX" in hint


class Written:
    """A policy by hand, applied to a CAS that runs, for a script in the current directory."""

    def __init__(self, home, address, **content):
        self.script = Path("job.py")
        self.script.write_text("print('ran')\n")
        program = Program(("python", "job.py"), ("job.py",))
        files = {"job.py": self.script}
        rules = (VaultRule("out", "/out", "read-write"),) if content.pop("with_vault", False) else ()
        config = boot_config("hand/written", address, program, rules, role="program")
        values = {
            "name": "hand/written",
            "role": "program",
            "owner": home.owner().public.fingerprint,
            "measurement": measure(config, files).value,
            "vendor_root": home.vendor().root_digest,
            "program": program,
            "vaults": rules,
        }
        self.text = write_policy(**(values | content))
        Path("policy.toml").write_text(self.text)


@pytest.fixture
def cas(home):
    with home.cas() as address:
        yield address


def test_a_policy_by_hand_runs(home, cas, capfd):
    Written(home, cas)
    assert main(["cas", "apply", "policy.toml"]) == 0
    assert main(["run", "--policy", "policy.toml"]) == 0
    assert "ran" in capfd.readouterr().out
    assert main(["measure", "--policy", "policy.toml", "--diff"]) == 0  # from what the CAS accepted just now
    assert "nothing differs" in capfd.readouterr().out


def test_an_unknown_policy(home, cas, refused):
    Written(home, cas)
    line, hint = refused(41, "run", "--policy", "policy.toml")
    assert "hand/written" in line
    assert hint


def test_a_script_changed_by_one_byte(home, cas, refused, capfd):
    written = Written(home, cas)
    assert main(["cas", "apply", "policy.toml"]) == 0
    written.script.write_text("print('Ran')\n")
    line, hint = refused(35, "run", "--policy", "policy.toml")
    assert "measurement: got" in line
    assert "strongroom measure --policy policy.toml --diff" in hint


def test_a_debug_enclave(home, cas, refused):
    Written(home, cas)
    assert main(["cas", "apply", "policy.toml"]) == 0
    _, hint = refused(32, "run", "--policy", "policy.toml", "--debug-enclave")
    assert hint


def test_a_simulated_enclave_under_a_default_policy(home, cas, refused):
    written = Written(home, cas)
    text = "\n".join(line for line in written.text.splitlines() if not line.startswith("allow_simulated"))
    Path("policy.toml").write_text(text.replace('tees = ["simulated"]', 'tees = ["tdx"]'))
    assert main(["cas", "apply", "policy.toml"]) == 0
    # What the policy wants is not here, and nothing takes its place unasked.
    line, _ = refused(61, "run", "--policy", "policy.toml")
    assert "the policy accepts tdx, and this machine is none" in line
    _, hint = refused(33, "run", "--policy", "policy.toml", "--evidence", "simulated")
    assert "allow_simulated" in hint


@pytest.mark.parametrize("mount", ["/", "/proc", "/usr/share/x", "/run/a", "/program", "/tmp/x"])
def test_a_vault_that_would_hide_part_of_the_enclave(home, cas, refused, mount):
    written = Written(home, cas, with_vault=True)
    Path("policy.toml").write_text(written.text.replace('mount = "/out"', f'mount = "{mount}"'))
    line, _ = refused(11, "cas", "apply", "policy.toml")
    assert mount in line


def test_a_policy_file_that_is_not_text_or_not_there(home, refused):
    Path("policy.toml").write_bytes(b"\xff\xfe")
    refused(11, "measure", "--policy", "policy.toml")
    refused(2, "measure", "--policy", "nothing.toml")


def test_a_draft_is_measured_before_it_can_be_applied(home, cas, refused, capfd):
    written = Written(home, cas)
    lines = [line for line in written.text.splitlines() if not line.startswith("measurements")]
    Path("policy.toml").write_text("\n".join(lines))
    assert main(["measure", "--policy", "policy.toml"]) == 0
    measurement = re.search(r'measurements = \["(\w+)"\]', written.text)[1]
    assert measurement in capfd.readouterr().out
    refused(11, "cas", "apply", "policy.toml")


def test_a_vault_that_a_policy_writes_can_be_unsealed_after_every_run(home, cas, capfd, tmp_path):
    (tmp_path / "seed").write_text("x")
    assert main(["seal", "seed", "out.vault"]) == 0
    Written(home, cas, with_vault=True)
    assert main(["cas", "apply", "policy.toml"]) == 0
    assert main(["cas", "entrust", "hand/written", "out", "out.vault"]) == 0
    for number in range(2):
        assert main(["run", "--policy", "policy.toml", "--vault", "out=out.vault"]) == 0, capfd.readouterr().err
        assert main(["unseal", "out.vault", f"x{number}"]) == 0, capfd.readouterr().err


SCRIPT = "import pathlib, sys; p = pathlib.Path('/out/n'); p.write_text(p.read_text() + 'x' if p.exists() else 'x')"


@pytest.fixture
def sandboxed():
    if sandbox.bubblewrap() is None:
        pytest.skip("bubblewrap does not work here: mounts are not tested")


def test_vaults_go_from_program_to_program(home, capfd, tmp_path, sandboxed):
    """Each program has a policy and so an anchor of its own: none may take another's new version for a rollback."""
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text(SCRIPT + f"; print({name!r})")
    (tmp_path / "read.py").write_text("print(open('/data/n').read())")

    def run(*words):
        assert main(["run", *words]) == 0, capfd.readouterr().err
        return capfd.readouterr().out.strip()

    # Each after itself, after the other, and after the other though it has written before; so does the reader.
    for number, name in enumerate(("one.py", "one.py", "two.py", "one.py", "two.py"), 1):
        assert run("--out", "shared.vault", "--", "python", name) == name
        if number != 2:
            assert run("--data", "shared.vault", "--out", "other.vault", "--", "python", "read.py") == "x" * number
    assert main(["unseal", "shared.vault", "plain"]) == 0


def test_a_run_that_fails_leaves_the_anchor_where_it_was(home, refused, tmp_path, sandboxed):
    from strongroom import vault

    (tmp_path / "one.py").write_text(SCRIPT)
    assert main(["run", "--out", "m.vault", "--", "python", "one.py"]) == 0
    sealed = SealedVault.at(tmp_path / "m.vault")
    for _ in range(3):
        with vault.open(sealed.path, "r+", key=sealed.key(), anchor=sealed.anchor) as opened:
            opened.write_bytes("more", os.urandom(8))
    before = sealed.anchor.path.read_bytes()
    refused(32, "run", "--debug-enclave", "--out", "m.vault", "--", "python", "one.py")
    assert sealed.anchor.path.read_bytes() == before
    refused(32, "run", "--debug-enclave", "--out", "new.vault", "--", "python", "one.py")
    assert not list(tmp_path.glob("new.vault*"))  # the program never began: there is nothing in it


def test_one_vault_is_not_read_and_written_at_once(sealed, refused):
    line, _ = refused(2, "run", "--data", "data.vault", "--out", "./data.vault", "--", "true")
    assert "twice" in line


def test_what_was_probably_meant(sealed, refused, tmp_path):
    assert "data.vault?" in refused(2, "run", "--data", "data", "--", "true")[1]
    assert "absolute" in refused(2, "run", "--data", "data.vault:rel", "--", "true")[0]
    assert "absolute" in refused(2, "run", "--data", "data.vault:/", "--", "true")[0]
    assert (
        "NAMESPACE/NAME"
        in refused(
            2,
            "predict",
            "--url",
            "https://127.0.0.1:1",
            "--policy",
            "no.toml",
            "--cas",
            "https://127.0.0.1:1",
            "--cas-root",
            "sha256:" + "0" * 64,
        )[0]
    )
    refused(2, "cas", "start", "--port", "99999")
    (tmp_path / "net default.onnx").write_text("x")
    assert main(["seal", "net default.onnx"]) == 0
    assert "rename it" in refused(2, "serve", "net default.onnx.vault")[1]


def test_the_current_directory_can_be_sealed(home, tmp_path, monkeypatch):
    (tmp_path / "here" / "empty").mkdir(parents=True)
    (tmp_path / "here" / "file").write_text("x")
    monkeypatch.chdir(tmp_path / "here")
    assert main(["seal", "."]) == 0
    assert (tmp_path / "here.vault").is_dir()
    assert main(["unseal", "../here.vault", "../again"]) == 0
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == ["empty", "file"]


def test_a_seal_that_was_refused_can_be_tried_again(home, refused, tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to("../nowhere")
    refused(2, "seal", "tree")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "tree"]
    (tmp_path / "tree" / "link").unlink()
    (tmp_path / "tree" / "file").write_text("x")
    assert main(["seal", "tree"]) == 0


def test_a_policy_that_says_true_to_every_simulation(home, cas, refused):
    written = Written(home, cas)
    root = home.vendor().root_digest
    Path("policy.toml").write_text(written.text.replace(f'allow_simulated = "{root}"', "allow_simulated = true"))
    refused(11, "cas", "apply", "policy.toml")


def test_a_cas_that_does_not_answer(home, refused):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    Written(home, CasAddress("", "sha256:" + "0" * 64))
    root = "sha256:" + "0" * 64
    refused(44, "run", "--policy", "policy.toml", "--cas", f"https://127.0.0.1:{port}", "--cas-root", root)


def test_another_cas_at_the_same_address(home, cas, refused):
    refused(51, "cas", "status", "--cas", cas.url, "--cas-root", "sha256:" + "0" * 64)


def test_an_error_as_json(home, capfd):
    import json

    assert main(["unseal", "nothing.vault", "--json"]) == 2
    error = json.loads(capfd.readouterr().out)
    assert error["code"] == "usage"
    assert error["exit_status"] == 2


def every_error(kind=StrongroomError):
    yield kind
    for child in kind.__subclasses__():
        yield from every_error(child)


def test_each_class_of_error_has_a_name_and_an_exit_status_of_its_own():
    kinds = list(every_error())
    assert len({kind.code for kind in kinds}) == len(kinds)
    assert len({kind.exit_code for kind in kinds}) == len(kinds)
    for kind in kinds:
        assert re.search(rf"\b{kind.__name__} +{kind.exit_code}   {kind.code}\n", errors.__doc__)
        assert type(from_wire(kind("x").to_wire())) is kind


def test_what_comes_over_the_wire_is_cleaned_for_the_terminal():
    error = from_wire({"error": "a\x1b[31mb\nc" + "x" * 5000, "code": "no-such", "hint": "\x07"})
    assert type(error) is StrongroomError
    assert error.message.startswith("a [31mb c")
    assert len(error.message) <= 2000
    assert error.message.endswith("x ... 3,049 more characters")
    assert printable(error.message) == error.message


def test_help_names_every_verb_and_no_verb_is_usage(capfd):
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    assert "demo" in capfd.readouterr().out
    assert main([]) == 2
