"""Programs that `torch.export` made, as modules whose ATen operators run on secrets.

`torch.export.load` unpickles parts of a file and evaluates its expressions of sizes as Python. So a file is taken apart
first: what is pickled is refused or left out (weights are raw bytes, example inputs are not needed), and operators and
expressions must be of kinds that do nothing but compute.
"""

from __future__ import annotations

import copy
import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from torch import fx, nn
from torch.utils._pytree import TreeSpec

from strongroom.errors import ModelFormatError
from strongroom.mpc.imports.graph import printable
from strongroom.mpc.imports.operators.layers import folded

_LOADING = threading.Lock()  # torch.export loads one at a time
_MAX_TEXT = 1 << 28
_MAX_FILE = 1 << 34
_RESAVE = "save it again with torch.export.save, of a module whose parameters are ordinary tensors"
_TARGETS = re.compile(
    r"(torch\.ops\.aten\.\w+\.\w+"
    r"|_operator\.(getitem|add|sub|mul|floordiv|mod|neg|eq|ne|lt|le|gt|ge|truediv|pow|and_|or_|not_)"
    r"|torch\.sym_(int|float|max|min|not|sum)|math\.(ceil|floor|trunc))"
)
_NAMES = re.compile(r"[A-Za-z_]\w*")
_SYMBOLS = re.compile(
    r"([su]\d+|Symbol|Integer|Rational|Add|Mul|Pow|Max|Min|FloorDiv|CeilDiv|Mod|PythonMod|CleanDiv"
    r"|Equality|Unequality|Eq|Ne|Lt|Le|Gt|Ge|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan"
    r"|positive|nonnegative|integer|True|False|oo|int_oo)"
)
_QUOTED = re.compile(r"'[su]\d+'")
_EXPRESSION = re.compile(r"[\w\s+\-*/(),<>=!%]*")
_BATCH_NORMS = {
    torch.ops.aten.batch_norm.default,
    torch.ops.aten._native_batch_norm_legit_no_training.default,
    torch.ops.aten.cudnn_batch_norm.default,
}


def read_exported(path: Path, *, weights: bool) -> nn.Module:
    """The program in a `.pt2` file.

    Raises:
        ModelFormatError: it is none, or cannot be loaded without running what it holds.
    """
    if path.stat().st_size > _MAX_FILE:
        raise ModelFormatError(f"model: {path.name} is over {_MAX_FILE} bytes")
    try:
        with zipfile.ZipFile(path) as archive:
            data = _without_pickles(archive, path.name)
    except (zipfile.BadZipFile, OSError, KeyError, ValueError) as error:
        raise ModelFormatError(f"model: {path.name} is no exported program: {printable(str(error))}") from None
    try:
        with _LOADING:
            program = torch.export.load(data)
    except Exception as error:  # of whatever class the parts of torch raise
        raise ModelFormatError(f"model: {path.name} cannot be loaded: {printable(str(error), 300)}") from error
    return of_program(program, weights=weights)


def _without_pickles(archive: zipfile.ZipFile, name: str) -> io.BytesIO:
    """The same archive, without what is unpickled."""
    made = io.BytesIO()
    if sum(each.file_size for each in archive.infolist()) > _MAX_FILE:
        raise ModelFormatError(f"model: {name} holds over {_MAX_FILE} bytes")
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as kept:
        for info in archive.infolist():
            _, _, inner = info.filename.partition("/")
            if info.filename.endswith(".json") and inner.split("/")[0] in ("models", "data"):
                if info.file_size > _MAX_TEXT:
                    raise ModelFormatError(f"model: {printable(inner)!r} in {name} is over {_MAX_TEXT} bytes")
                _require_data(json.loads(archive.read(info)), inner, name)
            if inner.startswith("data/aotinductor") or (inner.endswith(".pt") and "sample_inputs" not in inner):
                raise ModelFormatError(f"model: {name} has {printable(inner)!r}, which holds code", hint=_RESAVE)
            if "/opaque_obj" in inner or "/custom_obj" in inner:
                raise ModelFormatError(f"model: {name} has {printable(inner)!r}, a pickled object", hint=_RESAVE)
            # What is said to be an example input is a pickle, and nothing is lost without it.
            kept.writestr(info.filename, b"" if "sample_inputs" in inner else archive.read(info))
    made.seek(0)
    return made


def _require_data(value: Any, inner: str, name: str) -> None:
    for each in _dictionaries(value):
        if each.get("use_pickle"):
            raise ModelFormatError(f"model: {name} has pickled tensors in {printable(inner)!r}", hint=_RESAVE)
        target, expression = each.get("target"), each.get("expr_str")
        if isinstance(target, str) and "inputs" in each and not _TARGETS.fullmatch(target):
            raise ModelFormatError(f"model: {name} calls {printable(target)!r}, wanted operators of ATen")
        if isinstance(expression, str) and not _is_size(expression):
            raise ModelFormatError(f"model: {name} has a size {printable(expression)!r}, wanted sums and products")


def _is_size(expression: str) -> bool:
    """Whether an expression is made of sizes, numbers and arithmetic alone."""
    bare = _QUOTED.sub("", expression)
    return bool(_EXPRESSION.fullmatch(bare)) and all(map(_SYMBOLS.fullmatch, _NAMES.findall(bare)))


def _dictionaries(value: Any) -> Iterator[dict[str, Any]]:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield each
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each


class Exported(nn.Module):
    """A program that has its own parameters, and its graph in common with its copies."""

    def __init__(self, program: Any) -> None:
        super().__init__()
        self.program = program
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.program(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        # Torch refuses it in an exported program, which is in the mode that it was exported in.
        self.training = False
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Exported:
        # Copying a graph warns of what torch itself does there.
        for part in vars(self.program).values():
            if isinstance(part, fx.Graph | TreeSpec):
                memo[id(part)] = part
        made = Exported(copy.deepcopy(self.program, memo))
        memo[id(self)] = made
        return made


def of_program(program: torch.export.ExportedProgram, *, weights: bool) -> nn.Module:
    """A program as a module whose batch normalisations are factors and summands."""
    with _LOADING:
        module: Any = program.module(check_guards=False)
    for node in list(module.graph.nodes):
        if node.target in (torch.ops.aten._assert_tensor_metadata.default, torch.ops.aten._assert_scalar.default):
            module.graph.erase_node(node)
        elif node.op == "call_function" and node.target in _BATCH_NORMS:
            _fold(module, node)
    module.graph.eliminate_dead_code()
    module.recompile()
    if not weights:
        _withhold(module)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return Exported(module)


def _withhold(module: Any) -> None:
    """Put zeros in the place of values, which the program itself, and whoever exported it, may go on using."""
    for name, tensor in list(module.state_dict(keep_vars=True).items()):
        if tensor.is_floating_point():
            path, _, last = name.rpartition(".")
            zeros = torch.zeros_like(tensor.detach())
            parameter = isinstance(tensor, nn.Parameter)
            setattr(module.get_submodule(path), last, nn.Parameter(zeros, requires_grad=False) if parameter else zeros)


def _fold(module: Any, node: Any) -> None:
    """Put new parameters, and a product and a sum with them, in the place of a batch normalisation."""
    x, *parts = node.args[:5]
    if node.target is torch.ops.aten.batch_norm.default and node.args[5]:
        raise ModelFormatError(f"model: {node.name} takes a batch's own statistics", hint="export it in eval mode")
    eps = float(node.args[-1] if node.target is not torch.ops.aten.batch_norm.default else node.args[7])
    tensors: Any = [
        None if part is None else _attribute(module, str(part.target)).detach().to(torch.float64) for part in parts
    ]
    weight, bias, mean, variance = tensors
    scale, shift = folded(weight, bias, mean, variance, eps)
    rank = x.meta["val"].ndim
    names = [f"{node.name}_{what}" for what in ("scale", "shift")]
    for name, value in zip(names, (scale, shift), strict=True):
        spread = value.to(torch.float32).reshape(-1, *[1] * (rank - 2))
        module.register_parameter(name, nn.Parameter(spread, requires_grad=False))
    with module.graph.inserting_before(node):
        factor, summand = (module.graph.get_attr(name) for name in names)
        product = module.graph.call_function(torch.ops.aten.mul.Tensor, (x, factor))
        total = module.graph.call_function(torch.ops.aten.add.Tensor, (product, summand))
    if node.target is torch.ops.aten.batch_norm.default:
        node.replace_all_uses_with(total)
    else:
        for user in list(node.users):
            user.replace_all_uses_with(total)
            module.graph.erase_node(user)
    module.graph.erase_node(node)
    for part in parts:
        if part is not None and not part.users:
            module.graph.erase_node(part)
            _drop(module, str(part.target))


def _attribute(module: Any, name: str) -> torch.Tensor:
    for part in name.split("."):
        module = getattr(module, part)
    return module  # type: ignore[no-any-return]


def _drop(module: Any, name: str) -> None:
    *path, last = name.split(".")
    for part in path:
        module = getattr(module, part)
    delattr(module, last)
