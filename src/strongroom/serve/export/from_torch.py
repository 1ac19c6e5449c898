"""PyTorch's modules and exported programs, by PyTorch's own exporter."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from strongroom.errors import MissingDependencyError, ModelFormatError, UsageError, printable
from strongroom.serve.export.made import Example, Made, arguments, flat
from strongroom.serve.graph.nodes import bodies

_INSTALL = "pip install 'strongroom[export]'"


def of_torch(model: Any, example: Example | None, *, opset: int | None, framework: str = "PyTorch") -> Made:
    """A module, or a program that `torch.export` made.

    The first size of every input may vary where the module lets it; a program's sizes are what it was exported with.

    Raises:
        UsageError: there is no example, or the module does not run on it.
        ModelFormatError: PyTorch cannot export it.
        MissingDependencyError: `onnxscript` is not installed.
    """
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError:
        raise MissingDependencyError("onnxscript: is not installed, wanted to export", hint=_INSTALL) from None
    if isinstance(model, torch.export.ExportedProgram):
        return _of_program(model, example, opset, framework)
    given, named = arguments(example, why="PyTorch records what the module does with them")
    args, kwargs = [_tensor(each) for each in given], {name: _tensor(each) for name, each in named.items()}
    was = model.training
    model.eval()
    try:
        answers, names = _run(model, args, kwargs)
        notes: tuple[str, ...] = ()
        try:
            # PyTorch takes a size of 1 for one that never varies.
            proto = _exported(model, *_doubled(args, kwargs), opset, varying=True)
        except ModelFormatError:
            proto = _exported(model, args, kwargs, opset, varying=False)
            notes = ("its sizes are fixed to the example's: the module does not let the first one vary",)
    finally:
        model.train(was)
    _call_outputs(proto.graph, names)
    return Made(proto, framework, _feeds(proto, args, kwargs), answers, notes)


def _of_program(program: Any, example: Example | None, opset: int | None, framework: str) -> Made:
    if example is None:
        args, kwargs = _random(program), {}
    else:
        given, named = arguments(example, why="")
        args, kwargs = [_tensor(each) for each in given], {name: _tensor(each) for name, each in named.items()}
    answers, names = _run(program.module(), args, kwargs)
    proto = _exported(program, args, kwargs, opset, varying=False)
    _call_outputs(proto.graph, names)
    return Made(proto, framework, _feeds(proto, args, kwargs), answers)


def _random(program: Any) -> list[Any]:
    """Tensors of the shapes that the program was exported with: numbers up to 1, and zeros of what is no fraction."""
    wanted = set(program.graph_signature.user_inputs)
    likes = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in wanted]
    if len(likes) != len(wanted) or not all(isinstance(each, torch.Tensor) for each in likes):
        raise UsageError("example: missing, wanted inputs of the model: the program takes what is no tensor")
    random = torch.Generator().manual_seed(0)
    made = []
    for each in likes:
        shape = [size if isinstance(size, int) else int(getattr(size.node, "hint", None) or 2) for size in each.shape]
        numbers = torch.rand(shape, generator=random)
        made.append(numbers.to(each.dtype) if each.dtype.is_floating_point else torch.zeros(shape, dtype=each.dtype))
    return made


def _run(module: Any, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], list[str]]:
    """The tensors that it answers with, and their names, if it answers with a mapping of them."""
    try:
        with torch.no_grad():
            answer = module(*args, **kwargs)
            answers = list(flat(_plain(answer)))
    except Exception as error:  # of whatever class the module raises
        raise UsageError(f"example: the model does not run on it: {printable(error)[:300]}") from error
    tensors = [each.detach().cpu().numpy() for each in answers if isinstance(each, torch.Tensor)]
    named = answer if isinstance(answer, Mapping) else {}
    plain = all(isinstance(name, str) and isinstance(each, torch.Tensor) for name, each in named.items())
    return tensors, list(named) if plain else []


def _plain(answer: Any) -> Any:
    """Transformers' answers are mappings of their own."""
    return answer.to_tuple() if hasattr(answer, "to_tuple") else answer


def _exported(model: Any, args: list[Any], kwargs: dict[str, Any], opset: int | None, *, varying: bool) -> Any:
    """Its model proto."""
    shapes = _varying(model, args, kwargs) if varying else None
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                model,
                tuple(args),
                kwargs=kwargs or None,
                dynamo=True,
                dynamic_shapes=shapes,
                opset_version=opset,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # of whatever class, and with pages of advice
        cause = _sentence(printable(error.__cause__ or error))
        raise ModelFormatError(f"model: PyTorch cannot export it: {cause}", hint=_HINT) from error
    if program is None:
        raise ModelFormatError("model: PyTorch made no ONNX of it", hint=_HINT)
    return program.model_proto


def _sentence(text: str) -> str:
    """The first sentence: what comes after it is advice, or a graph."""
    found = re.match(r"(.{1,300}?)(?:[.!?](?=\s)|$)", " ".join(text.split()))
    return found[1] if found else f"{text[:299]}…"


def _call_outputs(graph: Any, names: list[str]) -> None:
    """Have outputs called so, but for those whose name something else in the model has.

    PyTorch would call them so too, and see to no other's name.
    """
    outputs = [each.name for each in graph.output]
    given = {each.name for each in (*graph.input, *graph.initializer)}
    if len(names) != len(outputs):
        return  # what it answers with is not what it made of it
    taken = {name for each in _all_graphs(graph) for name in _names(each)}
    calls = {
        old: new
        for old, new in zip(outputs, names, strict=True)
        if new and new not in taken and old not in given and outputs.count(old) == names.count(new) == 1
    }
    for each in _all_graphs(graph):
        for node in each.node:
            node.input[:] = [calls.get(name, name) for name in node.input]
            node.output[:] = [calls.get(name, name) for name in node.output]
        for value in (*each.output, *each.value_info):
            value.name = calls.get(value.name, value.name)


def _all_graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from _all_graphs(body)


def _names(graph: Any) -> Iterator[str]:
    yield from (each.name for each in (*graph.input, *graph.initializer, *graph.output))
    for node in graph.node:
        yield from (*node.input, *node.output)


_HINT = "torch.export.export(model, args) says what it cannot follow"


def _varying(model: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """`dynamic_shapes` of a call in which every tensor's first size may vary."""

    def first(tensor: Any) -> Any:
        return {0: torch.export.Dim.DYNAMIC} if tensor.ndim else None

    parameters = list(inspect.signature(model.forward).parameters.values())
    shapes: dict[str, Any] = {}
    left = list(args)
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            shapes[parameter.name] = tuple(first(each) for each in left)
            left = []
        elif left and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            shapes[parameter.name] = first(left.pop(0))
    known = {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
    shapes.update((name, first(each)) for name, each in kwargs.items() if name in known)
    rest = {name: first(each) for name, each in kwargs.items() if name not in known}
    if rest:
        shapes.update(rest)
    return shapes


def _doubled(args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    def twice(tensor: Any) -> Any:
        return torch.cat([tensor, tensor]) if tensor.ndim and tensor.shape[0] == 1 else tensor

    return [twice(each) for each in args], {name: twice(each) for name, each in kwargs.items()}


def _feeds(proto: Any, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    names = [each.name for each in proto.graph.input]
    # Inputs that the module does not use are left out by name; those that are left keep their order.
    by_name = {name: kwargs[name] for name in names if name in kwargs}
    places = iter(args)
    feeds = {name: by_name[name] if name in by_name else next(places, None) for name in names}
    return {name: each.numpy() for name, each in feeds.items() if each is not None}


def _tensor(array: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(array))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells its progress, its deprecations and its failures' graphs to whoever called us."""
    loggers = [
        logging.getLogger(name)
        for name in ("torch", "torch._dynamo", "torch.fx", "torch.onnx", "onnxscript", "onnx_ir")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        nowhere = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
