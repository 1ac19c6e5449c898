"""`strongroom policy init`: a commented document for a command, to start from."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from strongroom.cas.policy.table import to_toml
from strongroom.cas.policy.templates import as_template
from strongroom.cas.policy.version import VaultRule, parse_policy
from strongroom.cli import output
from strongroom.cli.policy.files import check_name
from strongroom.cli.run.vaults import make_vault, pairs, vaults_of
from strongroom.cli.run.verb import program_of
from strongroom.cli.signers import KEY, signer
from strongroom.cli.workspace import Home, SealedVault
from strongroom.errors import UsageError

UNMEASURED = "00" * 48


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "strongroom policy init [OPTIONS] -- COMMAND ..."
    parser.add_argument("--name", metavar="NAMESPACE/NAME", help="the policy's name (default: my/PROGRAM)")
    parser.add_argument("--role", choices=("program", "service"), default="program", help="what attests under it")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write it (default: policy.toml)")
    parser.add_argument("--owner", metavar=KEY, help="its key, a file or a pkcs11: URI (default: this user's)")
    parser.add_argument(
        "--data", action="append", default=[], metavar="VAULT[:MOUNT]", help="a vault that it reads (at /data)"
    )
    parser.add_argument(
        "--results",
        action="append",
        default=[],
        metavar="VAULT[:MOUNT]",
        help="a vault that it writes (at /out); made if it does not exist",
    )
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable, not a secret")
    parser.add_argument(
        "--include", action="append", default=[], metavar="PATH", help="a file of the program, or all below a directory"
    )
    output.add_json(parser)
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="the program and its arguments")


def run(args: argparse.Namespace) -> int:
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UsageError("command: give one after --", hint="strongroom policy init -- python train.py")
    label = next((Path(word).stem for word in command if word.endswith(".py")), Path(command[0]).name)
    word = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:63] or "program"
    name = check_name(args.name or f"my/{word}")
    home = Home.open()
    key = signer(args.owner, home)
    command, files = program_of(command, args.include)
    # The document's directory is where its files are looked for.
    base = next((path.resolve().parents[file.count("/")] for file, path in files.items()), Path.cwd())
    out = args.out or base / "policy.toml"
    if files and out.resolve().parent != base.resolve():
        raise UsageError(
            f"--out: got {out}, and the program's files lie below {base}", hint="the document lies beside its program"
        )
    sealed, rules = vaults_of(args.data, args.results, flag="--results")
    environment = dict(pairs(args.env, "--env"))
    text = _document(
        name=name,
        role=args.role,
        owner=key.public.fingerprint,
        vendor_root=home.vendor().root_digest,
        command=[as_template(word) for word in command],
        files=sorted(files),
        environment={variable: as_template(value) for variable, value in environment.items()},
        vaults=rules,
    )
    parse_policy(text)
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{out}: file exists", hint="--out FILE writes another, beside it") from None
    for rule in rules:
        if rule.access == "read-write":
            make_vault(sealed[rule.name])
    if any("${secret." in word for word in (*command, *environment.values())):
        output.note("`${` is written as `$${`, itself: for a secret's value edit the document")
    steps = _steps(out, name, args.role, sealed)
    if args.json:
        value = {"path": str(out), "policy": name, "owner": key.public.fingerprint, "files": sorted(files)}
        output.result(value | {"vaults": [rule.name for rule in rules], "next": steps})
        return 0
    output.stdout.print(f"written to {out}", markup=False, soft_wrap=True)
    output.note("next, when it says what you want" + ("" if rules else " (it gives no vault yet)") + ":")
    for step in steps:
        output.note(f"  {step}")
    return 0


def _steps(out: Path, name: str, role: str, sealed: Mapping[str, SealedVault]) -> list[str]:
    """The commands from a document to a run of its program, or as far as they are the same for a service."""
    here = Path(out.name) if out.resolve().parent == Path.cwd().resolve() else out
    vaults = [word for vault, at in sealed.items() for word in ("--vault", f"{vault}={at.path}")]
    commands = [
        ["measure", "--policy", str(here), "--write"],
        ["policy", "apply", str(here)],
        *(["cas", "entrust", name, vault, str(at.path)] for vault, at in sealed.items()),
        *([["run", "--policy", str(here), *vaults]] if role == "program" else []),
    ]
    return [shlex.join(["strongroom", *command]) for command in commands]


def _document(
    *,
    name: str,
    role: str,
    owner: str,
    vendor_root: str,
    command: list[str],
    files: list[str],
    environment: Mapping[str, str],
    vaults: Sequence[VaultRule],
) -> str:
    return f"""\
# A policy: what may run in an enclave, and what it receives there. Whatever is not named is refused or not given.
# `strongroom policy check` says what is wrong with it, `strongroom policy apply` stores it in a CAS.

[policy]
name = {to_toml(name)}
version = 1
# From version 2 on, the digest of the version before, which `strongroom policy apply` prints:
# previous = "sha256:..."
# The administrator's key, which stores versions and secrets:
owner = {to_toml(owner)}
role = {to_toml(role)}
# From when on nothing attests under it, and how many enclaves may live at once:
# expires = 2027-01-01T00:00:00Z
# instances = 1

# Several people who must agree to every version, the next one included. `strongroom policy key FILE` prints a key.
# [owners]
# threshold = 2
# [owners.keys]
# alice = "MFkw..."
# bob = "MFkw..."

[reference]
# Kinds of enclave: sgx, tdx, snp, azure-snp, azure-tdx, nitro, tpm, simulated.
tees = ["simulated"]
# What may run. `strongroom measure --policy FILE` prints the value, and --write puts it here; until then nothing can
# attest.
measurements = [{to_toml(UNMEASURED)}]
# This user's simulated enclaves, which protect nothing against the owner of the machine. Take the line out, and
# "simulated" from `tees`, where the hardware is real.
allow_simulated = {to_toml(vendor_root)}

[program]
command = {to_toml(command)}
# Relative to this document; the enclave sees these and no other file of yours.
files = {to_toml(files)}
# With `image = "sha256:..."`, a container image is the program's root: `strongroom image LAYOUT` prints its digest.

# In the command, in variables and in files ${{secret.NAME}} is a secret of [[secrets]]; to say ${{ write $${{.
{_environment(environment)}
# What is sealed and the enclave gets the key of; access is read-only, read-write or mirror.
{_vaults(vaults)}
# What else the program finds where: a directory that begins empty; with rule = "host" one of this machine's, in clear;
# with rule = "authenticated" and `vault`, instead of that vault's `mount`, one that is authenticated only.
# [[paths]]
# path = "/scratch"
# rule = "ephemeral"

# A secret for a variable, or without one for templates, stored with `strongroom cas secret`. With generate = 32 the CAS
# draws it; with `deposited = true` an enclave of this policy writes it.
# [[secrets]]
# name = "token"
# environment = "UPLOAD_TOKEN"

# A file that is written into the enclave's memory before the program starts.
# [[files]]
# path = "/secrets/upload.conf"
# content = "token=${{secret.token}}\\n"

# The network is closed, but for what is named here: replicas, other policies that name this one, ports for outsiders.
# [mesh]
# peers = ["my/other"]
# publish = [{{ name = "api", port = 8000 }}]

# And hosts outside, each by the root that may vouch for it: system for any of certifi's, or one in PEM.
# [[egress]]
# host = "files.example.com"
# port = 443
# ca = "system"

# Somebody else who may do a part of what the administrator may: apply, secrets, anchors, log, revoke, grants,
# certificates.
# [[administrators]]
# name = "alice"
# key = "sha256:..."
# may = ["secrets"]
# resources = ["secret:token"]
"""


def _environment(variables: Mapping[str, str]) -> str:
    if not variables:
        return '# [program.environment]\n# OMP_NUM_THREADS = "1"\n'
    lines = (f"{to_toml(name)} = {to_toml(value)}\n" for name, value in variables.items())
    return "[program.environment]\n" + "".join(lines)


def _vaults(rules: Sequence[VaultRule]) -> str:
    mark = "" if rules else "# "
    return "\n".join(
        f"{mark}[[vaults]]\n{mark}name = {to_toml(rule.name)}\n{mark}mount = {to_toml(rule.mount)}\n"
        f"{mark}access = {to_toml(rule.access)}\n"
        for rule in rules or (VaultRule("data", "/data", "read-only"),)
    )
