"""`strongroom run`: an unmodified program in an enclave."""

from __future__ import annotations

import argparse
import signal
import site
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

from strongroom.cas.client.address import CasAddress
from strongroom.cas.client.verification import verify_cas
from strongroom.cas.policy.network import EgressRule, Published, wanted
from strongroom.cas.policy.version import Policy, Program, SealedRule, VaultRule, parse_policy
from strongroom.cli import output
from strongroom.cli.cas import address as cas_address
from strongroom.cli.cas import reference as cas_reference
from strongroom.cli.image import add_image, image_of
from strongroom.cli.mesh.told import Told
from strongroom.cli.mirror.directory import make_directory, mirror_key, seen_from_outside
from strongroom.cli.remembered import (
    compiled_code,
    compiling_boot,
    keep_compiled,
    load_digests,
    remember_measured,
    save_digests,
)
from strongroom.cli.run import evidence as run_evidence
from strongroom.cli.run import words as run_words
from strongroom.cli.run.events import describe_event
from strongroom.cli.run.failed import name_vaults, tell_left_out, tell_tools
from strongroom.cli.run.outside import by_host, egress_rules, listeners_of
from strongroom.cli.run.outside import published as published_services
from strongroom.cli.run.replicas import Replicas, check_count, listener_of, numbered
from strongroom.cli.run.vaults import made_vaults, only_writer, pairs
from strongroom.cli.run.words import LOG, MIRROR
from strongroom.cli.workspace import (
    Home,
    SealedVault,
    apply_development_policy,
    entrust,
    read_policy,
    restored_here,
    take_back,
    write_policy,
)
from strongroom.enclave.config import PROGRAM_ENTRY, SERVICE_ENTRY, BootConfig, FileMount, VaultMount
from strongroom.enclave.devices import Devices
from strongroom.enclave.enforce import able_in, check_enforceable
from strongroom.enclave.image import Unpacked, with_image
from strongroom.enclave.launch import Enclave, Isolation, launch
from strongroom.enclave.machine.kind import Machine
from strongroom.enclave.measure import KNOWN, Part, measure, program_files, python_files
from strongroom.enclave.scripts import entry_of
from strongroom.errors import MeasurementError, StrongroomError, UsageError

_ELASTIC_LEASE = 30  # seconds after which whoever was killed may be replaced
_SLOW = 5.0  # seconds from the command to the program, after which a person is told that it has started


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "strongroom run [OPTIONS] -- COMMAND ...\n"
        "       strongroom run [OPTIONS] --image LAYOUT[:TAG] [-- COMMAND ...]\n"
        "       strongroom run [OPTIONS] --policy FILE"
    )
    parser.epilog = (
        "Without --policy, a development policy is written and applied to this user's development CAS: it names "
        "exactly the program about to run. The program finds --data at /data, read-only, and writes to /out, which is "
        "sealed into --out when it ends, whatever its exit status; not if the enclave itself is ended (out of memory, "
        "kill -9), or if --out has no room. Example: strongroom seal digits, then strongroom run --data digits.vault "
        "-- python train.py"
    )
    run_words.add_measured(parser)
    parser.add_argument("--policy", type=Path, metavar="FILE", help="run what this policy says instead")
    run_words.add_unmeasured(parser)
    add_image(parser)
    cas_address.add(parser)
    cas_reference.add(parser)
    run_evidence.add(
        parser, default="with --policy the machine that this is, if the policy names its platform; else simulated"
    )
    parser.add_argument("--debug-enclave", action="store_true", help="launch as a debug enclave; policies refuse it")
    output.add_json(parser)
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="the program and its arguments")


def run(args: argparse.Namespace) -> int:
    args.began = time.monotonic()
    isolation = Isolation.here()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if bool(command or (args.image and not args.policy)) == bool(args.policy):
        raise UsageError("command: give a command after --, or --policy FILE", hint="strongroom run -- python train.py")
    run_words.check(args, command)
    for line in isolation.notes:
        output.note(line)
    home = Home.open()
    try:
        return _run_policy(args, home) if args.policy else _run_command(args, home, command)
    except KeyboardInterrupt:  # later it is the program's: `_pass_signals_on`
        output.note("interrupted before the program began")
        raise


def _run_policy(args: argparse.Namespace, home: Home) -> int:
    policy = read_policy(args.policy)
    if policy.program is None or policy.role != "program":
        raise UsageError(f"policy {policy.name}: says nothing of a program to run")
    check_launchable(policy)
    machine = run_evidence.machine_of(args, policy.reference)
    if args.replicas:
        check_count(policy, args.replicas, args.replica or 0)
    _warn_of_readers(policy, _numbers(args))
    files = program_files(args.policy.parent, policy.program.files)
    image = image_of(args, home, digest=policy.program.image)
    vaults = {name: Path(place) for name, place in pairs(args.vault, "--vault")}
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
            return _launch(args, home, address, policy, policy.program, files, vaults, image=image, machine=machine)
        except MeasurementError as error:
            if error.message.startswith("measurement: "):
                compare = f"`strongroom measure --policy {args.policy} --diff`"
                error.hint = f"{compare} says what differs and what to do about it"
            raise
        finally:
            written = [rule.name for rule in things if rule.access != "read-only"]
            if written and home.has_owner:  # one of several hosts has no policies, and needs no key for them
                with home.owner_client(address, reference=cas_reference.of(args)) as client:
                    for name in written:
                        take_back(client, policy, name, SealedVault.at(vaults[name]))


@contextmanager
def _cas_of(args: argparse.Namespace, home: Home) -> Iterator[CasAddress]:
    reference = cas_reference.of(args)
    with cas_address.cas_of(args, home) as address:
        if reference is not None:  # the enclave does so again, over a connection of its own
            verify_cas(address.url, reference, cas_root=address.cas_root)
        yield address


def _run_command(args: argparse.Namespace, home: Home, command: list[str]) -> int:
    if args.cas:
        raise UsageError(
            "--cas: a development policy goes to the development CAS", hint="write a policy: --policy FILE"
        )
    machine = run_evidence.machine_of(args, None)
    image = image_of(args, home)
    command, files = program_of(command, args.include, image)
    egress, publish = egress_rules(args.egress), published_services(args.publish)
    digest = image.image.digest if image is not None else ""
    program = Program.literal(command, sorted(files), dict(pairs(args.env, "--env")), digest, args.tool or None)
    sealed, rules = run_words.vaults(args)
    # What a policy would refuse is refused before anything is made.
    _draft(program, rules, egress, publish, args.replicas)
    written = [sealed[rule.name] for rule in rules if rule.access == "read-write"]
    with made_vaults(written) as keep_vaults, only_writer(written):
        return _run_approved(
            args,
            home,
            command,
            program,
            files,
            sealed,
            rules,
            egress=egress,
            publish=publish,
            image=image,
            machine=machine,
            keep_vaults=keep_vaults,
        )


def _run_approved(
    args: argparse.Namespace,
    home: Home,
    command: list[str],
    program: Program,
    files: Mapping[str, Path],
    sealed: Mapping[str, SealedVault],
    rules: tuple[VaultRule, ...],
    *,
    egress: tuple[EgressRule, ...],
    publish: tuple[Published, ...],
    image: Unpacked | None,
    machine: Machine | None,
    keep_vaults: Callable[[], object],
) -> int:
    """Run it under a development policy of its own, which names exactly this program."""
    owner, vendor = home.owner(), home.vendor()
    keys = [mirror_key(vault) if name == MIRROR else vault.key() for name, vault in sealed.items()]
    name = run_words.name(command, image, keys)
    reference = cas_reference.document_of(args)
    with _cas_of(args, home) as address, home.owner_client(address, owner) as client:
        config = boot_config(name, address, program, rules, quiet=args.quiet, image=image, cas_reference=reference)
        _load_digests(home)
        with nullcontext() if machine else compiling_boot(home, config) as keep:
            measured = measure(config, files, image=image.measured() if image is not None else None)
            if keep is not None:
                keep(measured)
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
            accepts=run_evidence.accepted(machine),
            replicas=args.replicas,
            tasks=run_words.tasks(args),
            lease=_ELASTIC_LEASE if args.elastic else None,
            egress=egress,
            publish=publish,
        )
        entrust(client, policy, sealed, restore=restored_here(client, policy))
        if args.mirror and make_directory(sealed[MIRROR]):  # the anchor file is where the CAS's anchor is, now
            output.note(f"made {args.mirror}; its key is {sealed[MIRROR].key_path}")
        output.note(f"policy {policy.name} version {policy.version}, measurement {measured.value[:16]}...")
        try:
            places = {n: v.path for n, v in sealed.items()}
            parts = measured.platform
            status = _launch(
                args,
                home,
                address,
                policy,
                program,
                files,
                places,
                parts,
                image=image,
                machine=machine,
                begins=keep_vaults,
            )
            if status:
                tell_left_out(files)
            return status
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
    *,
    image: Unpacked | None = None,
    machine: Machine | None = None,
    begins: Callable[[], object] = lambda: None,
) -> int:
    """Launch what a policy says, and wait for it.

    Args:
        platform: parts that were measured already.
        begins: called when the program begins, and may write to its vaults.
    """
    events: list[dict[str, Any]] = []
    imported: list[str] = []
    accepted = False
    mesh = Told(home)

    def on_event(name: str, detail: Mapping[str, Any]) -> None:
        nonlocal accepted
        accepted |= name == "attested"
        if name == "running":
            begins()
        which = f"[{detail['replica']}] " if "replica" in detail else ""
        if name == "running" and time.monotonic() - args.began > _SLOW:
            output.note(f"{which}the program has started, after {time.monotonic() - args.began:.0f} seconds")
        if name == "imported":
            imported.extend(map(str, detail["sources"]))
            return
        mesh.heed(name, detail)
        if name == "mesh-status":
            return
        events.append(dict(detail))
        line = describe_event(name, detail)
        if line:
            output.note(f"{which}{line}")

    reference = cas_reference.document_of(args)
    config = boot_config(
        policy.name,
        address,
        program,
        policy.vaults,
        policy=policy,
        quiet=args.quiet,
        image=image,
        cas_reference=reference,
    )
    devices = None
    if policy.mesh is not None and policy.mesh.wired:
        devices = Devices.here(simulated=machine is None)
        if devices.program is not None:
            output.warn(f"mesh: {devices.program.name}, a process of this machine, has the key of its WireGuard device")
    hosts = {path: Path(place) for path, place in pairs(args.host_path, "--host-path")}
    for path in config.host:
        output.warn(f"{path} is {hosts.get(path, 'not given')}, unprotected: the host reads and changes what is there")
    if platform is None:
        _load_digests(home)
    if platform is None and machine is None:
        with compiling_boot(home, config) as keep:
            measured = measure(config, files, image=image.measured() if image is not None else None)
            keep(measured)
        platform = measured.platform
    numbers = _numbers(args)
    several = bool(args.replicas)

    def start(number: int | None, stdout: int | None, stderr: int | None) -> Enclave:
        listener, endpoint = None, ""
        if policy.mesh is not None:
            listener, endpoint = listener_of(args.mesh_address, address, wired=policy.mesh.wired)
        published: Mapping[str, socket.socket] = {}
        try:
            turn = list(numbers).index(number) if several else 0
            published = listeners_of(args.publish, policy, endpoint.rpartition(":")[0].strip("[]"), turn)
            return launch(
                config,
                files,
                cas=address,
                vendor=None if machine else home.vendor(),
                machine=machine,
                vaults=vaults,
                listener=listener,
                endpoint=endpoint,
                outside=by_host(policy.egress),
                published=published,
                devices=devices,
                knobs={"wait": not args.no_wait},
                every=args.every or "auto",
                replica=number,
                platform=platform,
                hosts=hosts,
                limits=run_words.limits(args),
                image=image,
                compiled=None if machine else compiled_code(home),
                debug=args.debug_enclave,
                on_event=numbered(on_event, number if several else None),
                stdout=stdout,
                stderr=stderr,
            )
        except BaseException:
            for each in (*published.values(), *([listener] if listener is not None else [])):
                each.close()
            raise

    shown = sys.stderr.fileno() if args.json else None
    enclaves = (
        Replicas([number for number in numbers if number is not None], start, elastic=args.elastic, shown=shown)
        if several
        else start(args.replica, shown, None)
    )
    enclave = enclaves.first if isinstance(enclaves, Replicas) else enclaves
    save_digests(home)
    _pass_signals_on(enclaves)
    try:
        status = enclaves.wait()
    except StrongroomError as error:
        name_vaults(error, vaults)
        mirror = next((SealedVault.at(vaults[rule.name]) for rule in policy.vaults if rule.access == "mirror"), None)
        if mirror is None:
            raise
        raise seen_from_outside(error, mirror) from error
    finally:
        if accepted:
            remember_measured(home, policy.name, enclave.measurement, config)
    if not machine:  # digests by what the kernel says of a file are for simulated enclaves
        keep_compiled(home, imported, enclave.measurement)
    save_digests(home)
    if args.json:
        output.result({"policy": policy.name, "exit_status": status, "events": events})
    if status:
        tell_tools(program.tools)
    return status


def _load_digests(home: Home) -> None:
    load_digests(home)
    if KNOWN.empty:
        output.note("every file of the environment is read to measure it; the next runs are quick about that")


def boot_config(
    name: str,
    address: CasAddress,
    program: Program,
    rules: tuple[VaultRule, ...],
    *,
    role: str = "program",
    policy: Policy | None = None,
    quiet: bool = False,
    image: Unpacked | None = None,
    cas_reference: str = "",
) -> BootConfig:
    """What an enclave is launched with under a policy of this name.

    Args:
        policy: whose sealed files, files and rules for paths it has; None for none.
        quiet: the host gets none of the program's output where that is sealed.
        image: the container image that is the program's root; which it must be is in `program`.
        cas_reference: as `BootConfig` has it.

    Raises:
        UsageError: the image is not there, or gives no command.
    """
    if program.image != (image.image.digest if image is not None else ""):
        raise UsageError(f"image: {program.image or 'none'} is the program's root, and not what was given")
    if program.image and role != "program":
        raise UsageError(f"program.image: is the root of a program, and the policy's role is {role}")
    if program.tools is not None and role != "program":
        raise UsageError(f"program.tools: are started by a program, and the policy's role is {role}")
    paths = policy.paths if policy else ()
    mounts = {rule.vault: rule.path for rule in paths if rule.vault}
    config = BootConfig(
        entry=PROGRAM_ENTRY if role == "program" else SERVICE_ENTRY,
        policy=name,
        cas_root=address.cas_root,
        cas_reference=cas_reference,
        role=role,
        command=program.command,
        environment=program.environment,
        vaults=tuple(VaultMount(r.name, r.mount or mounts.get(r.name, ""), r.access) for r in rules),
        authenticated=tuple(rule.vault for rule in paths if rule.rule == "authenticated"),
        sealed=tuple(VaultMount(r.name, r.path, r.access) for r in policy.sealed) if policy else (),
        files=tuple(FileMount(f.path, f.content, f.mode) for f in policy.files) if policy else (),
        ephemeral=tuple(rule.path for rule in paths if rule.rule == "ephemeral"),
        host=tuple(rule.path for rule in paths if rule.rule == "host"),
        log=LOG if any((r.name, r.mount) == (LOG, "") for r in rules) else "",
        quiet=quiet,
        tools=program.tools,
        isolation=Isolation.here().measured,
    )
    return with_image(config, image.image) if image is not None else config


def _numbers(args: argparse.Namespace) -> Sequence[int | None]:
    """Which replicas start here; None for an enclave that is none."""
    first = args.replica or 0
    return range(first, first + args.replicas) if args.replicas else [args.replica]


def _warn_of_readers(policy: Policy, here: Sequence[int | None]) -> None:
    """Say which vaults and sealed files those that start here only read, since others write them."""
    rules: tuple[VaultRule | SealedRule, ...] = (*policy.vaults, *policy.sealed)
    for rule in rules:
        if rule.writers and all(rule.access_of(replica) == "read-only" for replica in here):
            which = "; --replica says which one this is" if None in here else ""
            who = f"writers are the replicas {', '.join(map(str, rule.writers))}"
            who = who if len(rule.writers) > 1 else f"writer is replica {rule.writers[0]}"
            output.warn(f"{rule.name}: read-only here: its {who}{which}")


def check_launchable(policy: Policy) -> None:
    """Raises EnclaveError if the policy says something that this launcher cannot enforce."""
    mounts = [rule.mount for rule in policy.vaults if rule.mount]
    check_enforceable(
        ((rule.path, rule.rule, rule.vault) for rule in policy.paths),
        wanted(policy.mesh, policy.egress),
        mounts=mounts,
        able=_able(policy),
        ports={each.name: each.port for each in policy.mesh.publish} if policy.mesh else {},
    )


def _able(policy: Policy) -> tuple[str, ...]:
    return able_in(policy.role, Isolation.here().measured)


def program_of(
    command: list[str], include: list[str], image: Unpacked | None = None
) -> tuple[list[str], dict[str, Path]]:
    """The command as the enclave runs it, and the files that it consists of.

    A script below the current directory keeps its relative name; another one's directory becomes the program's. All
    Python files below the script's directory come along, or below the current one for ``python -m`` and for a command
    that a package brings. Of ``./job.sh`` that file does. With an image, the command's words are the image's.
    """
    base = Path.cwd()
    names: list[str] = []
    if image is None and command[0] in ("python", "python3"):
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
    elif image is None and entry_of(command[0], site.getsitepackages()) is not None:
        names = python_files(base, base)
    elif image is None and (own_file := _own_file(command[0], base)) is not None:
        names = [own_file]
    for extra in include:
        path = Path(extra).resolve()
        if not path.exists() or not path.is_relative_to(base.resolve()):
            raise UsageError(f"--include: {extra} is no file or directory below {base}")
        below = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
        own = (each for each in below if "__pycache__" not in each.parts)
        names += [name for each in own if (name := each.relative_to(base.resolve()).as_posix()) not in names]
    return command, program_files(base, names)


def _own_file(word: str, base: Path) -> str | None:
    """The file that a command such as ``./job.sh`` starts, if it lies below `base`: by its name from there."""
    path = Path(word)
    if "/" not in word or path.is_absolute() or ".." in path.parts or not path.is_file():
        return None
    return path.as_posix() if path.resolve().is_relative_to(base.resolve()) else None


def _draft(
    program: Program,
    rules: tuple[VaultRule, ...],
    egress: tuple[EgressRule, ...],
    publish: tuple[Published, ...],
    replicas: int | None,
) -> None:
    """Raises PolicyError if no policy could say this, EnclaveError if this launcher could not enforce it."""
    digest = "sha256:" + "0" * 64
    text = write_policy(
        name="dev/draft",
        role="program",
        owner=digest,
        measurement="0" * 96,
        vendor_root=digest,
        program=program,
        vaults=rules,
        egress=egress,
        publish=publish,
        replicas=replicas,
    )
    check_launchable(parse_policy(text))


def _pass_signals_on(enclave: Enclave | Replicas) -> None:
    def pass_on(number: int, frame: FrameType | None) -> None:
        enclave.signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH):
        signal.signal(number, pass_on)
