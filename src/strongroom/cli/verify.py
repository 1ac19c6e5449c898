"""`strongroom verify model`: where a model comes from, link by link, up to the first that does not hold."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from strongroom.attest.binding import canonical
from strongroom.cas.client.address import ADDRESS_FILE, CasAddress
from strongroom.cli import output
from strongroom.cli.cas import address as cas_address
from strongroom.cli.parser import add_debug
from strongroom.cli.run.verb import program_of
from strongroom.cli.secrets import add_opening, sealed_vault
from strongroom.cli.workspace import Home, SealedVault, read_policy
from strongroom.crypto import content_digest
from strongroom.enclave.config import PROCESS, BootConfig
from strongroom.enclave.measure import measure
from strongroom.errors import BindingError, UsageError, printable
from strongroom.lineage import SUFFIX
from strongroom.lineage.requirement import LineageReader, Requirement
from strongroom.lineage.statement import timestamp
from strongroom.lineage.tree import pieces, vault_tree
from strongroom.lineage.verify import Lineage
from strongroom.serve.onnx_file import has_outside_weights
from strongroom.serve.weights import inline_weights
from strongroom.vault import Vault

_MAX_STATEMENT = 1 << 20


def configure(parser: argparse.ArgumentParser) -> None:
    things = parser.add_subparsers(dest="thing", metavar="THING", required=True)
    model = things.add_parser(
        "model",
        help="an output of `strongroom run`",
        description="Walk a model back: its bytes, the signed statement beside it, the policy, the enclave, the data.",
        epilog=(
            "Works without any service: the CAS's root key alone decides. A link that you give nothing to compare with "
            "is shown as stated, not as checked. Example: strongroom verify model out.vault:model.onnx --data "
            "digits.vault --policy dev/train-6f2e903e --program python train.py"
        ),
    )
    add_debug(model)
    output.add_json(model)
    model.add_argument("model", metavar="VAULT[:PATH]|FILE", help="in a vault, or a plain file with its lineage beside")
    model.add_argument("--lineage", type=Path, metavar="FILE", help="of a plain file (default: FILE.lineage.json)")
    cas_address.add_root(model, "the CAS whose word counts")
    model.add_argument(
        "--allow-simulated",
        metavar="sha256:...",
        help="accept simulated enclaves of this vendor root (default: with the development CAS, this user's)",
    )
    model.add_argument("--policy", metavar="NAME|FILE", help="it must be this policy; as a file, in that very version")
    model.add_argument("--measurement", action="append", default=[], metavar="HEX", help="it must be this program")
    model.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="[NAME=]VAULT",
        help="it must have read what is in there now, as the data set of that name (default: a read-only one)",
    )
    add_opening(model, cas=False)
    model.add_argument("--include", action="append", default=[], metavar="FILE", help="with --program, as for `run`")
    model.add_argument(
        "--program",
        nargs=argparse.REMAINDER,
        metavar="COMMAND",
        help="measure this command and its files again, as for `run`; everything after it belongs to it",
    )


def run(args: argparse.Namespace) -> int:
    walk = _Walk(quiet=args.json)
    requirement = _requirement(args)
    with _opened(args) as (source, path):
        lineage = source.verify(requirement, path)
        digests = f"sha256 {lineage.output.sha256[:16]}..., blake3 {lineage.output.blake3[:16]}..."
        walk.checked("model", f"{_called(source, path, lineage)}, {digests}")
        by, ran = lineage.by, lineage.run
        walk.checked("signature", f"CAS {by.cas_root[:23]}..., at {timestamp(by.signed)} by its clock")
        for other in source.beside(requirement, path, lineage):
            walk.checked("weights", f"{other}, of the same run")
    _policy(args, lineage, walk)
    _program(args, lineage, walk)
    _data(args, lineage, walk)
    for mirror in ran.mirrors:
        steps = ", ".join(str(one.step) for one in mirror.resumes.listed[-8:])
        after = f", at {'steps ..., ' if mirror.resumes.count > 8 else 'step '}{steps}" if steps else ""
        walk.stated("mirror", f"{mirror.name}: step {mirror.step}, resumed {mirror.resumes.count} times{after}")
    walk.stated("run", f"began {timestamp(ran.started)} by the enclave's clock, Strongroom {ran.version}")
    if by.tee == "simulated":
        output.note(f"lineage of a {output.SIMULATED_BANNER}")
    if args.json:
        output.result(_wire(lineage, path, walk))
    return 0


@dataclass
class _Walk:
    """The links so far, shown as they are found to hold."""

    quiet: bool
    links: list[dict[str, object]] = field(default_factory=list)

    def checked(self, link: str, text: str) -> None:
        self._add("✓", link, text, True)

    def stated(self, link: str, text: str) -> None:
        """What the statement says, with nothing to compare it with."""
        self._add("·", link, text, False)

    def _add(self, mark: str, link: str, text: str, checked: bool) -> None:
        self.links.append({"link": link, "checked": checked, "text": text})
        if not self.quiet:
            output.stdout.print(f"{mark} {link:12} {printable(text)}", markup=False, soft_wrap=True)


@dataclass(frozen=True)
class _Source:
    """Where a model and its statement lie: in a vault, or in the file system."""

    vault: Vault | None
    statement: Path | None = None

    def verify(self, requirement: Requirement, path: str) -> Lineage:
        with self._open(path) as file:
            found = content_digest(pieces(file), sha256=True)
        try:
            with self._open(path + SUFFIX) as file:
                raw = file.read(_MAX_STATEMENT)
        except FileNotFoundError:
            raw = None
        return requirement.check(path, found, raw)

    def beside(self, requirement: Requirement, path: str, lineage: Lineage) -> Sequence[str]:
        """The other files that an ONNX model's weights lie in, each with its own lineage, of the same run."""
        if not path.endswith(".onnx"):
            return []
        with self._open(path) as file:
            model = file.read()
        if not has_outside_weights(model):
            return []
        read = LineageReader(requirement, self._read)
        read.found[path] = lineage
        inline_weights(model, lambda name: read(str(PurePosixPath(path).parent / name)))
        return [other for other in read.found if other != path]

    def _read(self, path: str) -> bytes:
        with self._open(path) as file:
            content: bytes = file.read()
        return content

    def _open(self, path: str) -> Any:
        if self.vault is not None:
            return self.vault.open(path)
        if self.statement is not None and path.endswith(SUFFIX):
            return self.statement.open("rb")
        return Path(path).open("rb")


@contextmanager
def _opened(args: argparse.Namespace) -> Iterator[tuple[_Source, str]]:
    given = str(args.model)
    if Path(given).is_file():
        yield _Source(None, args.lineage), Path(given).as_posix()
        return
    if args.lineage is not None:
        raise UsageError("--lineage: a vault holds it beside the model", hint="copy both out, or leave --lineage away")
    place, path = given, ""
    if not Path(given).exists():
        place, _, path = given.rpartition(":")
    if not place:
        raise UsageError(f"model: {given} does not exist", hint="give a file, a vault, or VAULT:PATH")
    with sealed_vault(Path(place), args).open() as opened:
        yield _Source(opened), path or _only_model(opened, place)


def _called(source: _Source, path: str, lineage: Lineage) -> str:
    """The path, and what the run called it where that is another: one output may have taken another's place.

    A plain file may lie in any directory.
    """
    written = lineage.output.name
    plain = source.vault is None
    if path == written or (plain and path.endswith(f"/{written}")):
        return path
    if not plain or PurePosixPath(path).name != PurePosixPath(written).name:
        output.note(f"the run wrote {path} as {written}: take care that it is the output that you mean")
    return f"{path}, written as {written}"


def _only_model(opened: Vault, place: str) -> str:
    files = opened.files()
    models = [name for name in files if name.endswith(".onnx")] or [
        name.removesuffix(SUFFIX) for name in files if name.endswith(SUFFIX)
    ]
    if len(models) != 1:
        raise UsageError(
            f"model: {place} holds {len(models)} of them", hint=f"{place}:{models[0] if models else 'PATH'} names one"
        )
    return models[0]


def _requirement(args: argparse.Namespace) -> Requirement:
    named = cas_address.root_of(args)
    if named:
        return Requirement(named, (), args.allow_simulated or "")
    home = Home.open()
    try:
        cas_root = CasAddress.load(home.path / "cas" / ADDRESS_FILE).cas_root
    except FileNotFoundError:
        raise UsageError("CAS: this user has no development CAS", hint="name the CAS to believe: --cas-root") from None
    return Requirement(cas_root, (), args.allow_simulated or home.vendor().root_digest)


def _policy(args: argparse.Namespace, lineage: Lineage, walk: _Walk) -> None:
    by = lineage.by
    text = f"{by.policy} version {by.policy_version}, {by.policy_digest[:23]}..."
    if args.policy is None:
        walk.stated("policy", text)
        return
    if Path(args.policy).is_file():
        policy = read_policy(Path(args.policy))
        lineage.require_policy([policy.name], digest=policy.digest)
        lineage.require_measurement(policy.reference.measurements)
    else:
        lineage.require_policy([args.policy])
    walk.checked("policy", text)


def _program(args: argparse.Namespace, lineage: Lineage, walk: _Walk) -> None:
    by = lineage.by
    isolation = "no sandbox" if lineage.run.boot.get("isolation") == PROCESS else "sandbox"
    walk.stated("enclave", f"{by.tee}, {isolation}, TCB {by.tcb_status}, vendor root {by.vendor_root[:23]}...")
    text = f"measurement {by.measurement[:16]}..., {' '.join(map(str, lineage.run.boot.get('command', ())))}"
    if args.measurement:
        lineage.require_measurement(args.measurement)
    if args.program:
        lineage.require_measurement([_measure_again(args, lineage)])
    (walk.checked if args.measurement or args.program else walk.stated)("program", text)


def _measure_again(args: argparse.Namespace, lineage: Lineage) -> str:
    """The measurement of that command's files under the boot configuration that the statement quotes."""
    command, files = program_of([*args.program], args.include)
    config = BootConfig.from_bytes(canonical(lineage.run.boot))
    if list(config.command) != command:
        raise BindingError(
            f"program: got {' '.join(command)}, the lineage says {' '.join(config.command)}",
            hint="give the command as it was run",
        )
    return measure(config, files).value


def _data(args: argparse.Namespace, lineage: Lineage, walk: _Walk) -> None:
    found: set[str] = set()
    for given in args.data:
        name, equals, place = given.partition("=")
        if not equals or Path(given).exists():
            name, place = None, given
        with SealedVault.at(Path(place)).open() as opened:
            found.add(lineage.require_data(vault_tree(opened), place, name=name).name)
    for one in lineage.run.data:
        text = f"{one.name} at {one.mount}, {one.access}: blake3 tree {one.tree[:16]}..., {one.files:,} files"
        (walk.checked if one.name in found else walk.stated)("data", f"{text}, {one.delivery}")


def _wire(lineage: Lineage, path: str, walk: _Walk) -> dict[str, object]:
    by = lineage.by
    return {
        "model": path,
        "written_as": lineage.output.name,
        "sha256": lineage.output.sha256,
        "blake3": lineage.output.blake3,
        "cas_root": by.cas_root,
        "policy": by.policy,
        "policy_version": by.policy_version,
        "policy_digest": by.policy_digest,
        "tee": by.tee,
        "measurement": by.measurement,
        "vendor_root": by.vendor_root,
        "signed": by.signed,
        **lineage.run.to_wire(),
        "links": walk.links,
    }
