"""`strongroom run`: an unmodified program in an enclave."""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from types import FrameType
from typing import Any

from strongroom.cas.client.address import CasAddress
from strongroom.cas.client.verification import verify_cas
from strongroom.cas.policy.version import Policy, Program, SealedRule, VaultRule, parse_policy
from strongroom.cli import cas_address, cas_reference, output
from strongroom.cli.mirror_directory import make_directory, mirror_key, seen_from_outside
from strongroom.cli.remembered import load_digests, remember_accepted, save_digests
from strongroom.cli.workspace import (
    Home,
    SealedVault,
    apply_development_policy,
    entrust,
    policy_name,
    read_policy,
    restored_here,
    take_back,
    write_policy,
)
from strongroom.enclave.config import PROGRAM_ENTRY, SERVICE_ENTRY, BootConfig, FileMount, VaultMount
from strongroom.enclave.enforce import check_enforceable
from strongroom.enclave.launch import Enclave, Isolation, launch
from strongroom.enclave.limits import Limits
from strongroom.enclave.listing import Listing
from strongroom.enclave.measure import Part, measure, program_files, python_files
from strongroom.enclave.mirrored import check_command
from strongroom.errors import MeasurementError, StrongroomError, UsageError

_LEAST_MEMORY = 64 << 20
MIRROR, LOG = "run-mirror", "run-log"  # no vault's name, which come from mounts, and none is in /run


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "strongroom run [OPTIONS] -- COMMAND ...\n       strongroom run [OPTIONS] --policy FILE"
    parser.epilog = (
        "Without --policy, a development policy is written and applied to this user's development CAS: it names "
        "exactly the program about to run. The program finds --data at /data, read-only, and writes to /out, which is "
        "sealed into --out when it ends, whatever its exit status. Example: strongroom seal digits, then strongroom "
        "run --data digits.vault -- python train.py"
    )
    parser.add_argument("--data", action="append", default=[], metavar="VAULT[:MOUNT]", help="read-only (at /data)")
    parser.add_argument(
        "--out",
        default="out.vault",
        metavar="VAULT[:MOUNT]",
        help="read-write (at /out); made if it does not exist (default: out.vault)",
    )
    parser.add_argument(
        "--mirror",
        type=Path,
        metavar="DIR",
        help="keep a mirror of what the script trains, so that the same command goes on with it after a kill",
    )
    parser.add_argument("--every", metavar="N", help="steps between two commits of the mirror (default: auto)")
    parser.add_argument("--include", action="append", default=[], metavar="FILE", help="another file of the program")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="measured, so not for secrets")
    parser.add_argument("--policy", type=Path, metavar="FILE", help="run what this policy says instead")
    parser.add_argument(
        "--vault",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="with --policy: where a vault or a sealed file of it lies",
    )
    parser.add_argument(
        "--host-path",
        action="append",
        default=[],
        metavar="PATH=DIR",
        help="with --policy: the directory that its rule `host` shows at PATH, unprotected",
    )
    parser.add_argument(
        "--replica", type=int, metavar="N", help="with --policy: which one of its instances this is, from 0 on"
    )
    parser.add_argument("--log", type=Path, metavar="VAULT", help="seal what the program prints into a vault, too")
    parser.add_argument("--quiet", action="store_true", help="with --log: print none of it here")
    parser.add_argument("--memory", metavar="SIZE", help="at most so much memory: 512M, 4G (default: all there is)")
    parser.add_argument("--cpus", metavar="N", help="at most so many processors' worth of time: 2, 0.5 (default: all)")
    cas_address.add(parser)
    cas_reference.add(parser)
    parser.add_argument("--debug-enclave", action="store_true", help="launch as a debug enclave; policies refuse it")
    output.add_json(parser)
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="the program and its arguments")


def run(args: argparse.Namespace) -> int:
    isolation = Isolation.here()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if bool(command) == bool(args.policy):
        raise UsageError("command: give a command after --, or --policy FILE", hint="strongroom run -- python train.py")
    if args.replica is not None and (args.replica < 0 or not args.policy):
        raise UsageError("--replica: numbers the instances of a policy, from 0 on: give --policy FILE")
    if args.host_path and not args.policy:
        raise UsageError(
            "--host-path: a policy of your own has to say so", hint='rule = "host" in it, and --policy FILE'
        )
    if args.quiet and not args.log:
        raise UsageError("--quiet: what the program prints would be lost", hint="--log VAULT seals it")
    if args.policy and args.log:
        raise UsageError("--log: a policy of your own gives no vault for it", hint="let the program write to a vault")
    if args.policy and args.mirror:
        raise UsageError("--mirror: the policy says that", hint='access = "mirror" in it, and --vault NAME=DIR here')
    _check_every(args)
    limits_of(args)
    if args.mirror:
        check_command(command)
    output.note(output.SIMULATED_BANNER)
    for line in isolation.notes:
        output.note(line)
    home = Home.open()
    if args.policy:
        return _run_policy(args, home)
    return _run_command(args, home, command)


def limits_of(args: argparse.Namespace) -> Limits:
    """What `--memory` and `--cpus` say. Raises UsageError."""
    memory = cpus = None
    if args.memory is not None:
        found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([KMGT]?)(?:i?B)?", args.memory, re.ASCII)
        memory = int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " ")) if found else 0
        if memory < _LEAST_MEMORY:
            raise UsageError(f"--memory: got {args.memory[:20]!r}, wanted a size of 64M or more, such as 512M or 4G")
    if args.cpus is not None:
        found = re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,3})?", args.cpus, re.ASCII)
        cpus = float(args.cpus) if found else 0.0
        if cpus < 0.01:
            raise UsageError(f"--cpus: got {args.cpus[:20]!r}, wanted a number of processors, such as 2 or 0.5")
    return Limits(memory, cpus)


def _check_every(args: argparse.Namespace) -> None:
    every = args.every
    if every is None:
        return
    if every != "auto" and not (every.isascii() and every.isdigit() and 0 < int(every[:9]) < 10**9):
        raise UsageError(f"--every: got {every[:20]!r}, wanted a number of steps from 1 on, or auto")
    if not args.policy and not args.mirror:
        raise UsageError("--every: says how often to commit, and there is no mirror", hint="--mirror DIR keeps one")


def _run_policy(args: argparse.Namespace, home: Home) -> int:
    policy = read_policy(args.policy)
    if policy.program is None or policy.role != "program":
        raise UsageError(f"policy {policy.name}: says nothing of a program to run")
    check_launchable(policy)
    _warn_of_readers(policy, args.replica)
    files = program_files(args.policy.parent, policy.program.files)
    vaults = {name: Path(place) for name, place in _pairs(args.vault, "--vault")}
    things: tuple[VaultRule | SealedRule, ...] = (*policy.vaults, *policy.sealed)
    missing = [rule.name for rule in things if rule.name not in vaults]
    if missing:
        raise UsageError(f"vault {missing[0]}: the policy names it", hint=f"give --vault {missing[0]}=PATH")
    mirrors = [SealedVault.at(vaults[rule.name]) for rule in policy.vaults if rule.access == "mirror"]
    if args.every and not mirrors:
        raise UsageError(f"--every: policy {policy.name} gives no mirror", hint='access = "mirror" gives one')
    for mirror in mirrors:
        make_directory(mirror)
    with _cas_of(args, home) as address:
        try:
            return _launch(args, home, address, policy, policy.program, files, vaults)
        except MeasurementError as error:
            error.hint = f"`strongroom measure --policy {args.policy} --diff` says what differs and what to do about it"
            raise
        finally:
            written = [rule.name for rule in things if rule.access != "read-only"]
            with home.owner_client(address, reference=cas_reference.of(args)) as client:
                for name in written:
                    take_back(client, policy, name, SealedVault.at(vaults[name]))


@contextmanager
def _cas_of(args: argparse.Namespace, home: Home) -> Iterator[CasAddress]:
    address = cas_address.named(args)
    reference = cas_reference.of(args)
    if address is not None and reference is not None:
        verify_cas(address.url, reference, cas_root=address.cas_root)
    with cas_address.cas_of(args, home) as found:
        yield found


def _run_command(args: argparse.Namespace, home: Home, command: list[str]) -> int:
    if args.cas:
        raise UsageError(
            "--cas: a development policy goes to the development CAS", hint="write a policy: --policy FILE"
        )
    command, files = program_of(command, args.include)
    program = Program.literal(command, sorted(files), dict(_pairs(args.env, "--env")))
    sealed, rules = _vaults_of(args)
    # What a policy would refuse is refused before anything is made.
    _draft(program, rules)
    out = next(sealed[rule.name] for rule in rules if rule.access == "read-write")
    _make(out)
    if args.mirror:
        if any(args.mirror.resolve() == vault.path.resolve() for vault in sealed.values()):
            raise UsageError(f"mirror: {args.mirror} is a vault", hint="give --mirror a directory of its own")
        sealed[MIRROR] = SealedVault.at(args.mirror)
        rules = (*rules, VaultRule(MIRROR, "", "mirror"))
    if args.log:
        if any(args.log.resolve() == vault.path.resolve() for vault in sealed.values()):
            raise UsageError(f"--log: {args.log} is used for something else", hint="give --log a vault of its own")
        sealed[LOG] = SealedVault.at(args.log)
        _make(sealed[LOG])
        rules = (*rules, VaultRule(LOG, "", "read-write"))
    owner, vendor = home.owner(), home.vendor()
    keys = [mirror_key(vault) if name == MIRROR else vault.key() for name, vault in sealed.items()]
    label = next((Path(word).stem for word in command if word.endswith(".py")), Path(command[0]).name)
    name = policy_name(label, keys)
    with home.cas() as address, home.owner_client(address, owner) as client:
        config = boot_config(name, address, program, rules, quiet=args.quiet)
        load_digests(home)
        measured = measure(config, files)
        save_digests(home)
        policy = apply_development_policy(
            client,
            name=name,
            role="program",
            owner=owner.public.fingerprint,
            measurement=measured.value,
            vendor_root=vendor.root_digest,
            program=program,
            vaults=rules,
        )
        entrust(client, policy, sealed, restore=restored_here(client, policy))
        if args.mirror and make_directory(sealed[MIRROR]):  # the anchor file is where the CAS's anchor is, now
            output.note(f"made {args.mirror}; its key is {sealed[MIRROR].key_path}")
        output.note(f"policy {policy.name} version {policy.version}, measurement {measured.value[:16]}...")
        try:
            places = {n: v.path for n, v in sealed.items()}
            return _launch(args, home, address, policy, program, files, places, measured.platform)
        finally:
            for rule in rules:
                if rule.access != "read-only":
                    take_back(client, policy, rule.name, sealed[rule.name])


def _launch(
    args: argparse.Namespace,
    home: Home,
    address: CasAddress,
    policy: Policy,
    program: Program,
    files: Mapping[str, Path],
    vaults: Mapping[str, Path],
    platform: Sequence[Part] | None = None,
) -> int:
    events: list[dict[str, Any]] = []
    accepted = False

    def on_event(name: str, detail: dict[str, Any]) -> None:
        nonlocal accepted
        accepted |= name == "attested"
        events.append(detail)
        line = describe_event(name, detail)
        if line:
            output.note(line)

    config = boot_config(policy.name, address, program, policy.vaults, policy=policy, quiet=args.quiet)
    hosts = {path: Path(place) for path, place in _pairs(args.host_path, "--host-path")}
    for path in config.host:
        output.warn(f"{path} is {hosts.get(path, 'not given')}, unprotected: the host reads and changes what is there")
    if platform is None:
        load_digests(home)
    enclave = launch(
        config,
        files,
        cas=address,
        vendor=home.vendor(),
        vaults=vaults,
        every=args.every or "auto",
        replica=args.replica,
        platform=platform,
        hosts=hosts,
        limits=limits_of(args),
        debug=args.debug_enclave,
        on_event=on_event,
        stdout=sys.stderr.fileno() if args.json else None,
    )
    save_digests(home)
    _pass_signals_on(enclave)
    try:
        status = enclave.wait()
    except StrongroomError as error:
        mirror = next((SealedVault.at(vaults[rule.name]) for rule in policy.vaults if rule.access == "mirror"), None)
        if mirror is None:
            raise
        raise seen_from_outside(error, mirror) from error
    finally:
        if accepted:
            remember_accepted(home, policy.name, Listing.of(enclave.measurement, config))
    if args.json:
        output.result({"policy": policy.name, "exit_status": status, "events": events})
    return status


def describe_event(name: str, detail: Mapping[str, Any]) -> str | None:
    """An enclave's report in words; None for those that say nothing new to a person."""
    match name:
        case "attested":
            given = [f"the keys of: {', '.join(detail['vaults'])}"] if detail["vaults"] else []
            given += [f"the secrets: {', '.join(detail['secrets'])}"] if detail.get("secrets") else []
            return f"attested; the CAS released {' and '.join(given) or 'nothing, which is what its policy names'}"
        case "vault":
            return f"vault {detail['vault']} at {detail['mount']}: {detail['how']}"
        case "sealed":
            count = len(detail["files"])
            return f"vault {detail['vault']}: sealed {count} file{'s' * (count != 1)}"
        case "mirror":
            return _describe_mirror(detail)
        case "notice":
            return str(detail["text"])
    return None


def _describe_mirror(detail: Mapping[str, Any]) -> str | None:
    match detail["what"]:
        case "begins":
            return "mirror: begins"
        case "resumes" if "since" in detail:
            return f"mirror: repeats the steps from {detail['since']} to {detail['step']}"
        case "resumes":
            return f"mirror: resumes from step {detail['step']} (not proved)"
        case "resumed" if "since" in detail:
            apart = f"; these differ, as times do: {', '.join(detail['apart'])}" if detail["apart"] else ""
            return f"mirror: resumes from step {detail['step']} (proved on the steps since {detail['since']}{apart})"
        case "left-out":
            return f"mirror: nothing is committed: {detail['why']}"
        case "not-captured":
            return f"mirror: not captured: {detail['names']}"
        case "ended":
            count = detail["commits"]
            return f"mirror: {count} commit{'s' * (count != 1)}, the newest of step {detail['step']}"
    return None


def boot_config(
    name: str,
    address: CasAddress,
    program: Program,
    rules: tuple[VaultRule, ...],
    *,
    role: str = "program",
    policy: Policy | None = None,
    quiet: bool = False,
) -> BootConfig:
    """What an enclave is launched with under a policy of this name.

    Args:
        policy: whose sealed files, files and rules for paths it has; None for none.
        quiet: the host gets none of the program's output where that is sealed.
    """
    paths = policy.paths if policy else ()
    mounts = {rule.vault: rule.path for rule in paths if rule.vault}
    return BootConfig(
        entry=PROGRAM_ENTRY if role == "program" else SERVICE_ENTRY,
        policy=name,
        cas_root=address.cas_root,
        role=role,
        command=program.command,
        environment=program.environment,
        vaults=tuple(VaultMount(r.name, r.mount or mounts.get(r.name, ""), r.access) for r in rules),
        sealed=tuple(VaultMount(r.name, r.path, r.access) for r in policy.sealed) if policy else (),
        files=tuple(FileMount(f.path, f.content, f.mode) for f in policy.files) if policy else (),
        ephemeral=tuple(rule.path for rule in paths if rule.rule == "ephemeral"),
        host=tuple(rule.path for rule in paths if rule.rule == "host"),
        log=LOG if any((r.name, r.mount) == (LOG, "") for r in rules) else "",
        quiet=quiet,
        isolation=Isolation.here().measured,
    )


def _warn_of_readers(policy: Policy, replica: int | None) -> None:
    """Say which vaults and sealed files this replica only reads, since others write them."""
    rules: tuple[VaultRule | SealedRule, ...] = (*policy.vaults, *policy.sealed)
    for rule in rules:
        if rule.writers and rule.access_of(replica) == "read-only":
            which = "; --replica says which one this is" if replica is None else ""
            writers = ", ".join(map(str, rule.writers))
            output.warn(f"{rule.name}: read-only here: its writers are the replicas {writers}{which}")


def check_launchable(policy: Policy) -> None:
    """Raises EnclaveError if the policy says something that this launcher cannot enforce."""
    wanted = [name for name, value in (("mesh", policy.mesh), ("egress", policy.egress)) if value]
    check_enforceable(((rule.path, rule.rule, rule.vault) for rule in policy.paths), wanted)


def program_of(command: list[str], include: list[str]) -> tuple[list[str], dict[str, Path]]:
    """The command as the enclave runs it, and the files that it consists of.

    A script below the current directory keeps its relative name; another one's directory becomes the program's. All
    Python files below the script's directory come along, or below the current one for ``python -m``.
    """
    base = Path.cwd()
    names: list[str] = []
    if command[0] in ("python", "python3"):
        position = next((i for i, word in enumerate(command[1:], 1) if not word.startswith("-")), None)
        if "-m" in command[1:position]:
            names = python_files(base, base)
        elif position is not None and "-c" not in command[1:position]:
            script = Path(command[position])
            if not script.is_file():
                raise UsageError(f"program: {script} does not exist")
            if not script.resolve().is_relative_to(base.resolve()):
                base = script.resolve().parent
                command = [*command[:position], script.name, *command[position + 1 :]]
                script = base / script.name
            names = python_files(script.resolve().parent, base.resolve())
            names = sorted({*names, script.resolve().relative_to(base.resolve()).as_posix()})
    for extra in include:
        path = Path(extra).resolve()
        if not path.is_file() or not path.is_relative_to(base.resolve()):
            raise UsageError(f"--include: {extra} is not a file below {base}")
        names.append(path.relative_to(base.resolve()).as_posix())
    return command, program_files(base, names)


def _make(vault: SealedVault) -> None:
    """Make an empty vault, unless it is there."""
    if vault.path.exists():
        return
    with vault.create() as new:
        new.commit()
    output.note(f"made {vault.path}; its key is {vault.key_path}")


def _vaults_of(args: argparse.Namespace) -> tuple[dict[str, SealedVault], tuple[VaultRule, ...]]:
    sealed: dict[str, SealedVault] = {}
    rules = []
    for text in args.data:
        path, mount = _place_and_mount(text, "/data")
        name = mount.strip("/").replace("/", "-")
        sealed[name] = SealedVault.at(path)
        sealed[name].open().close()
        rules.append(VaultRule(name, mount, "read-only"))
    path, mount = _place_and_mount(args.out, "/out")
    name = mount.strip("/").replace("/", "-")
    sealed[name] = SealedVault.at(path)
    rules.append(VaultRule(name, mount, "read-write"))
    for one, other in combinations(rules, 2):
        if sealed[one.name].path.resolve() == sealed[other.name].path.resolve():
            raise UsageError(f"vault: {sealed[one.name].path} is used twice", hint="give --out another vault")
    mounts = [rule.mount for rule in rules]
    for mount in mounts:
        if mounts.count(mount) > 1:
            raise UsageError(f"mount: {mount} is used twice", hint="--data VAULT:/another/path")
    return sealed, tuple(rules)


def _draft(program: Program, rules: tuple[VaultRule, ...]) -> None:
    """Raises PolicyError if no policy could say this."""
    digest = "sha256:" + "0" * 64
    text = write_policy(
        name="dev/draft",
        role="program",
        owner=digest,
        measurement="0" * 96,
        vendor_root=digest,
        program=program,
        vaults=rules,
    )
    parse_policy(text)


def _place_and_mount(text: str, default: str) -> tuple[Path, str]:
    place, colon, mount = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), default
    if not mount.startswith("/") or mount.strip("/") == "":
        raise UsageError(f"mount: got {mount!r}, wanted an absolute path", hint="VAULT:/data, for one")
    return Path(place), mount


def _pairs(texts: list[str], flag: str) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"{flag}: got {text!r}, wanted NAME=VALUE")
        pairs.append((name, value))
    return pairs


def _pass_signals_on(enclave: Enclave) -> None:
    def pass_on(number: int, frame: FrameType | None) -> None:
        enclave.signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH):
        signal.signal(number, pass_on)
