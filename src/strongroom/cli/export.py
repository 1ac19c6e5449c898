"""`strongroom export`: a framework's model as the ONNX file that `serve` runs, compared before it is written."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from strongroom.cli import output
from strongroom.cli.arrays import read
from strongroom.errors import FormatError, StrongroomError, UsageError, printable


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The file is written only if ONNX Runtime answers to the example as the framework does. FILE.py:NAME runs your "
        "own program and takes what it calls NAME: a model, or a function that makes one. Example: strongroom export "
        "train.py:model --example image.npy --output model.onnx"
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="FILE.py:NAME, a .pt2, .keras or .h5 file, the folder of a TensorFlow SavedModel or of a Hugging Face "
        "checkpoint, or a .onnx file, which is put in one piece",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.onnx", help="the file to write")
    parser.add_argument(
        "--example",
        type=Path,
        metavar="INPUT",
        help=".npy, .npz or .json: inputs of the model, by its arguments' names if there are several; PyTorch needs "
        "them, most others say themselves what theirs are like",
    )
    parser.add_argument("--opset", type=int, metavar="N", help="of ONNX (default: what the framework's exporter takes)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        metavar="PART",
        help="how far answers may be apart, as part of the largest (default: 1e-4)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.output.exists() and not args.overwrite:
        raise UsageError(f"output: {args.output} exists", hint="choose another name, or --overwrite")
    if not args.tolerance >= 0:
        raise UsageError(f"tolerance: {args.tolerance}, wanted 0 or more")
    example = None if args.example is None else _example(args.example)
    # Keras reads this when it is imported; where nobody chose, its models are exported by PyTorch.
    if "KERAS_BACKEND" not in os.environ and importlib.util.find_spec("torch") is not None:
        os.environ["KERAS_BACKEND"] = "torch"
    from strongroom.serve.export import export

    done = export(_model(args.model), args.output, example=example, opset=args.opset, tolerance=args.tolerance)
    if args.json:
        output.result(
            {
                "file": str(done.path),
                "framework": done.framework,
                "digest": f"sha256:{done.digest}",
                "bytes": done.bytes,
                "inputs": [info.to_wire() for info in done.inputs],
                "outputs": [info.to_wire() for info in done.outputs],
                "difference": done.difference,
                "notes": list(done.notes),
            }
        )
        return 0
    for note in done.notes:
        output.note(note)
    if done.difference is not None:
        output.note(f"{done.framework} and ONNX Runtime differ by {done.difference:.1g} of the largest answer")
    output.stdout.print(f"{done.path} {done.bytes:,} bytes sha256:{done.digest}", markup=False, soft_wrap=True)
    for what, infos in (("takes", done.inputs), ("gives", done.outputs)):
        for info in infos:
            output.stdout.print(f"{what} {info.name} {info}", markup=False, soft_wrap=True)
    return 0


def _example(path: Path) -> Any:
    """Arrays; JSON does not say how wide a fraction is, and models take 32 bits."""
    given = read(path, what="example")
    if path.suffix in (".npy", ".npz"):
        return given

    def narrow(array: Any) -> Any:
        return array.astype(np.float32) if array.dtype == np.float64 else array

    return {name: narrow(each) for name, each in given.items()} if isinstance(given, dict) else narrow(given)


def _model(text: str) -> Any:
    """What to export: a path, or what the user's own program makes."""
    if text.endswith(".py"):
        raise UsageError(f"model: {text} is a program", hint=f"wanted {text}:NAME, a model in it or what makes one")
    file, colon, name = text.rpartition(":")
    if not colon or not file.endswith(".py"):
        return text
    path = Path(file)
    if not path.is_file():
        raise UsageError(f"model: there is no {file}")
    if not name.isidentifier():
        raise UsageError(f"model: {name!r} is no name in {file}, wanted FILE.py:NAME")
    spec = importlib.util.spec_from_file_location("_model_of_the_user", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"model: {file} is no Python program")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent.absolute()))
    try:
        # What it prints is not the result.
        with contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
            if not hasattr(module, name):
                raise UsageError(f"model: {file} has no {name}")
            made = getattr(module, name)
            return made() if _makes_one(made) else made
    except StrongroomError:
        raise
    except SystemExit:
        raise UsageError(f"model: {file} ended before it made {name}") from None
    except Exception as error:  # of whatever class the program raises
        raise FormatError(f"model: {file} fails: {type(error).__name__}: {printable(error)[:300]}") from error
    finally:
        sys.path.remove(str(path.parent.absolute()))


def _makes_one(value: Any) -> bool:
    """Whether it is a function or a class: what makes a model, and none itself."""
    return isinstance(value, type) or type(value).__name__ in ("function", "builtin_function_or_method", "method")
