"""Programs that `torch.export` made, as modules whose ATen operators run on secrets.

A file's program is one that `program_file` lets through: `torch.export.load` runs much of what a file says.
"""

from __future__ import annotations

import copy
import threading
import zipfile
from pathlib import Path
from typing import Any, Self

import torch
from torch import fx, nn
from torch.utils._pytree import TreeSpec

from strongroom.errors import ModelFormatError
from strongroom.mpc.imports.graph import printable
from strongroom.mpc.imports.operators.layers import folded
from strongroom.mpc.imports.program_file import MAX_FILE, safe_archive
from strongroom.mpc.imports.room import MAX_MADE

_LOADING = threading.Lock()  # torch.export loads one at a time
_BATCH_NORMS = {
    torch.ops.aten.batch_norm.default,
    torch.ops.aten._native_batch_norm_legit_no_training.default,
    torch.ops.aten.cudnn_batch_norm.default,
}


def read_exported(path: Path, *, weights: bool) -> nn.Module:
    """The program in a `.pt2` file, as a module; raises as `program_of`."""
    return of_program(program_of(path), weights=weights)


def program_of(path: Path) -> torch.export.ExportedProgram:
    """The program in a `.pt2` file.

    Raises:
        ModelFormatError: it is none, or cannot be loaded without running what it holds.
    """
    if (size := path.stat().st_size) > MAX_FILE:
        raise ModelFormatError(f"model: {path.name} is over {MAX_FILE} bytes")
    try:
        with zipfile.ZipFile(path) as archive:
            data = safe_archive(archive, path.name, size)
    except ModelFormatError:
        raise
    except Exception as error:  # of whatever class a description of another form leads to
        raise ModelFormatError(f"model: {path.name} is no exported program: {printable(str(error))}") from None
    try:
        with _LOADING:
            program = torch.export.load(data)
    except Exception as error:  # of whatever class the parts of torch raise
        raise ModelFormatError(f"model: {path.name} cannot be loaded: {printable(str(error), 300)}") from error
    _require_carried(program, path.name)
    return program


def _require_carried(program: Any, name: str) -> None:
    """Raise ModelFormatError if tensors have far more elements than the file has bytes for."""
    tensors = [each for each in (*program.state_dict.values(), *program.constants.values()) if torch.is_tensor(each)]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    beyond = sum(each.numel() * each.itemsize for each in tensors) - sum(storages.values())
    if beyond > MAX_MADE:
        raise ModelFormatError(f"model: {name} makes {beyond} bytes of what it holds, wanted at most {MAX_MADE}")


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
