"""The model that a plan is of: a plain file, or one in a vault, which is never written anywhere in the clear."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from strongroom.cli.arrays import read
from strongroom.cli.secrets import add_opening, sealed_vault
from strongroom.cli.workspace import SealedVault
from strongroom.errors import FormatError, UsageError

if TYPE_CHECKING:
    from strongroom.serve.graph import Chain, Model
    from strongroom.serve.plan.document import Plan
    from strongroom.serve.plan.prober import Values
    from strongroom.vault import Vault

_MOST_VALUES = 1 << 14  # of an input, which is told to the process that runs the model as JSON


def read_plan(path: Path, option: str) -> Plan:
    """The plan in a file. Raises UsageError if there is none, FormatError if it is none."""
    from strongroom.serve.plan.document import Plan

    try:
        return Plan.parse(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{option}: {path}: {(error.strerror or str(error)).lower()}") from None
    except FormatError as error:
        raise FormatError(
            f"{option}: {path} is no plan: {error.message}", hint="`strongroom plan --output FILE` writes one"
        ) from None


def add_sizes(parser: argparse.ArgumentParser, *, batch: str, dim: str) -> None:
    """Give a verb the options that say how large requests are, with their help."""
    parser.add_argument("--batch", type=int, default=1, metavar="B", help=batch)
    parser.add_argument("--dim", action="append", default=[], metavar="NAME=N", help=dim)


def sizes_of(args: argparse.Namespace) -> tuple[int, dict[str, int]]:
    """The batch, and other sizes by name. Raises UsageError: they are none."""
    if args.batch < 1:
        raise UsageError(f"--batch: got {args.batch}, wanted at least 1")
    return args.batch, dict(map(_dim, args.dim))


def _dim(text: str) -> tuple[str, int]:
    name, _, number = text.rpartition("=")
    if not name or not (number.isascii() and number.isdigit() and 0 < int(number[:10]) < 2**31 and len(number) <= 10):
        raise UsageError(f"--dim: got {text[:60]!r}, wanted a name and a size such as sequence=128")
    return name, int(number)


def example_values(chain: Chain, *, example: Path | None, batch: int, dims: Mapping[str, int]) -> Values:
    """The whole numbers of an example of a request. Raises UsageError: its shapes are not those that are planned."""
    from strongroom.serve.plan.profile import batch_sizes

    if example is None:
        return {}
    given, sizes = read(example, what="--example"), batch_sizes(chain, batch, dims)
    inputs = {each.name: each for each in chain.frontier(0)}
    named = given if isinstance(given, dict) else dict.fromkeys(inputs, given)
    if not set(named) <= set(inputs) or (not isinstance(given, dict) and len(inputs) > 1):
        raise UsageError(f"--example: has {', '.join(named)}, wanted some of {', '.join(inputs)}, by name")
    found: dict[str, list[int]] = {}
    for name, array in named.items():
        shape = tuple(size if isinstance(size, int) else sizes.get(size, 1) for size in inputs[name].shape)
        if array.shape != shape:
            raise UsageError(
                f"--example: {name} has shape {list(array.shape)}, and planned is {list(shape)}",
                hint="--batch and --dim say what is planned",
            )
        if array.dtype.kind in "iub" and array.size <= _MOST_VALUES:
            found[name] = [int(each) for each in array.ravel()]
    return found


@dataclass(frozen=True)
class Source:
    """Where a model is.

    Attributes:
        name: for people.
        path: of a plain file, or in the vault.
        sealed: the vault; None for a plain file.
    """

    name: str
    path: str
    sealed: SealedVault | None = None

    def load(self) -> Model:
        """Read it, and weights that lie in files beside it: in the same vault, if it is in one.

        Raises:
            ModelFormatError: it is no model.
            VaultFormatError, IntegrityError: the vault is not as it was written.
        """
        from strongroom.serve.graph import load

        if self.sealed is None:
            return load(Path(self.path))
        folder = PurePosixPath(self.path).parent
        with self.sealed.open() as opened:
            return load(opened.read_bytes(self.path), external=_beside(opened, folder))

    def save(self, model: bytes, place: str) -> None:
        """Keep a smaller model: beside a plain one in a file, of a sealed one in the same vault.

        Raises:
            UsageError: a sealed model would become a plain file, or the vault has something of that name.
        """
        if self.sealed is None:
            Path(place).write_bytes(model)
            return
        path = PurePosixPath(place)
        if path.is_absolute() or ".." in path.parts:
            raise UsageError(
                f"--save-model: got {place}, wanted a path in {self.sealed.path.name}",
                hint="the model is sealed, so a smaller one is sealed too",
            )
        with self.sealed.open("r+") as opened:
            if str(path) in opened:
                raise UsageError(f"--save-model: {self.sealed.path.name} has a {path}", hint="choose another path")
            for above in [*path.parents][-2::-1]:
                opened.mkdir(str(above), exist_ok=True)
            opened.write_bytes(str(path), model)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Give a verb the argument that names a model, and those that open the vault that it may lie in."""
    parser.add_argument(
        "model", metavar="FILE|VAULT[:PATH]", help="an ONNX model: a file, or in a vault, at a path there"
    )
    add_opening(parser)


def source_of(args: argparse.Namespace) -> Source:
    """Where the model is that the arguments name.

    Raises:
        UsageError: nowhere, or the vault has none or several.
    """
    given: str = args.model
    place, path = given, ""
    if not Path(given).exists():
        place, _, path = given.rpartition(":")
    if not place or not Path(place).exists():
        raise UsageError(f"model: {given} does not exist", hint="give a file, a vault, or VAULT:PATH")
    if not Path(place).is_dir():
        if path:
            raise UsageError(f"model: {place} is a file, not a vault", hint=f"give {place}, or a vault")
        _require_no_opening(args)
        return Source(Path(place).name, place)
    sealed = sealed_vault(Path(place), args)
    with sealed.open() as opened:
        path = path or _only(opened, place)
        if path not in opened:
            raise UsageError(f"model: {path} is not in {place}")
    return Source(PurePosixPath(path).name, path, sealed)


def _only(opened: Vault, place: str) -> str:
    models = [name for name in opened.files() if name.endswith(".onnx")]
    if len(models) != 1:
        raise UsageError(
            f"model: {place} holds {len(models)} .onnx files, wanted one",
            hint=f"{place}:{models[0] if models else 'PATH'} names one",
        )
    return models[0]


def _beside(opened: Vault, folder: PurePosixPath) -> Callable[[str], bytes]:
    return lambda name: opened.read_bytes(str(folder / name))


def _require_no_opening(args: argparse.Namespace) -> None:
    given = (args.key, args.age_identity, args.anchor, args.cas_slot, args.passphrase_fd)
    if args.passphrase or any(each is not None for each in given):
        raise UsageError(
            f"model: {args.model} is a plain file, which nothing opens", hint="leave out --key and the like"
        )
