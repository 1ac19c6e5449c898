"""`strongroom mpc cost`: what a model's call or a program on secrets will cost, without running it on any."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from strongroom.cli import output
from strongroom.cli.mpc.verb import require_torch
from strongroom.errors import StrongroomError, UsageError
from strongroom.mpc.script import Script

if TYPE_CHECKING:
    from strongroom.mpc.costs.network import Network
    from strongroom.mpc.costs.predict import Cost
    from strongroom.mpc.ring import Settings

RANK: Final = "STRONGROOM_MPC_RANK"
_MOST_DIMENSIONS = 8


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "strongroom mpc cost [OPTIONS] --shape N,N,... MODEL\n       strongroom mpc cost [OPTIONS] SCRIPT [ARGUMENTS]"
    )
    parser.epilog = (
        "No party is started and no secret is asked for. Rounds and bytes are exact; seconds are predicted, from what "
        "this machine computes. Of a model it is one call on one input, its result revealed. "
        "Example: strongroom mpc cost --shape 1,3,32,32 resnet.onnx"
    )
    model = parser.add_argument_group("a model")
    model.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="N,N,...",
        help="of its input; once for each of several",
    )
    model.add_argument(
        "--weights", choices=("own", "share", "public"), default="own", help="one server's, secret from both, or public"
    )
    parser.add_argument("--by", choices=("module", "line", "operation"), help="what the rows of the table are")
    parser.add_argument(
        "--network",
        action="append",
        default=[],
        metavar="NAME,MS,MBIT",
        help="one more to predict for: milliseconds of a round trip, megabits a second",
    )
    parser.add_argument("--settings", default="", metavar="WORDS", help="such as frac=16,bound=15,exact")
    output.add_json(parser)
    parser.add_argument("-m", dest="module", action="store_true", help="the program is a module")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="FILE", help="a model, or a program")


def run(args: argparse.Namespace) -> int:
    words = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not words:
        raise UsageError("file: none was given", hint="strongroom mpc cost --shape 1,3,32,32 model.onnx")
    require_torch()
    from strongroom.mpc.costs.network import NETWORKS
    from strongroom.mpc.peers import make_settings, settings_of

    settings = make_settings(settings_of(args.settings))
    networks = [*NETWORKS, *map(_network, args.network)]
    program = args.module or words[0].endswith(".py")
    if program:
        if args.shape:
            raise UsageError("--shape: is for a model, and a program shares its own inputs")
        found = _of_script(Script.find(words, module=args.module), settings, networks)
        if found is None:
            return 1
    else:
        if len(words) > 1:
            raise UsageError(f"arguments: got {words[1][:40]!r}, wanted none for a model", hint="options come first")
        found = _of_model(Path(words[0]), [_shape(text) for text in args.shape], args.weights, settings, networks)
    if args.json:
        output.result(found.to_dict())
    else:
        sys.stdout.write(f"{found.table(args.by or ('line' if program else 'module'))}\n")
    return 0


def _of_model(
    path: Path, shapes: list[tuple[int, ...]], weights: str, settings: Settings, networks: list[Network]
) -> Cost:
    from strongroom import mpc
    from strongroom.mpc.imports.load import load_architecture
    from strongroom.mpc.tensor.world import user_line

    if not shapes:
        raise UsageError("--shape: was not given", hint="such as --shape 1,3,32,32: batch, channels, height, width")
    model = load_architecture(path).eval()
    try:
        return mpc.cost(model, shapes, weights=weights, settings=settings, networks=networks)  # type: ignore[arg-type]
    except StrongroomError as error:
        # The line that is named is no program's: there is none.
        file, line = user_line()
        given = " ".join(f"--shape {','.join(map(str, shape))}" for shape in shapes)
        hint = f"does {given} fit the model?"
        message = error.message.replace(f"; at {file}:{line}", "")
        raise type(error)(message, hint=f"{error.hint}; {hint}" if error.hint else hint) from None


def _of_script(script: Script, settings: Settings, networks: list[Network]) -> Cost | None:
    """What a program costs; nothing if it failed, which is said."""
    from strongroom import mpc

    try:
        return mpc.cost(_as_each_party(script), settings=settings, networks=networks)
    except Exception as error:
        if isinstance(error, StrongroomError):
            if line := script.line(error):
                output.note(f"was at {script.name}:{line}")
            raise
        sys.stderr.write(script.trace(error))
        return None


def _as_each_party(script: Script) -> Callable[[], None]:
    """The program, as whichever party this thread's world is; what it prints is of values that are none."""
    from strongroom.mpc.tensor.world import current

    def run() -> None:
        os.environ[RANK] = str(current().party.rank)
        before, argv, path = set(sys.modules), sys.argv, list(sys.path)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                script.run()
        except SystemExit as exit_:
            if exit_.code:
                raise UsageError(f"program: exited with status {exit_.code}", hint="it is run on zeros here") from None
        finally:
            del os.environ[RANK]
            sys.argv, sys.path[:] = argv, path
            # Each party has modules of its own, where they are the program's.
            beside = str(Path(script.path).resolve().parent)
            for name in set(sys.modules) - before:
                if (getattr(sys.modules[name], "__file__", None) or "").startswith(f"{beside}{os.sep}"):
                    del sys.modules[name]

    return run


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.split(",")
    numbers = all(each.isascii() and each.isdigit() and len(each) < 10 for each in sizes)
    if not numbers or len(sizes) > _MOST_DIMENSIONS:
        raise UsageError(f"--shape: got {text[:40]!r}, wanted sizes such as 1,3,32,32")
    return tuple(map(int, sizes))


def _network(text: str) -> Network:
    from strongroom.mpc.costs.network import Network

    name, *numbers = text.split(",")
    try:
        milliseconds, megabits = map(float, numbers)
    except ValueError:
        raise UsageError(f"--network: got {text[:40]!r}, wanted a name, ms and Mbit/s such as site,20,1000") from None
    return Network(name, milliseconds / 1e3, megabits * 1e6)
