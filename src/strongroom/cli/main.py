"""`strongroom VERB ...`: parse, dispatch, and turn every error into one line, one hint and one exit status."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Protocol

from strongroom import __version__
from strongroom.cli import early, output
from strongroom.cli.parser import DEBUG, Parser
from strongroom.errors import MissingDependencyError, StrongroomError, UsageError

# In the order of the story that `strongroom --help` tells. A verb's module is imported only when it is called.
VERBS = {
    "demo": "run the whole story on real data: seal, train, kill, resume, serve, predict, refuse",
    "seal": "encrypt a file or a directory",
    "unseal": "decrypt what `seal` made",
    "mount": "show a vault as a directory that programs read and write",
    "unmount": "commit and take away what `mount` made",
    "vault": "look into vaults, copy in and out, verify, back up, and say who can open them",
    "mirror": "look into the mirror of a training: its commits, arrays and values; verify, go back, export",
    "spot": "training on spot instances: simulate it with and without a mirror, or really kill and restart one",
    "run": "run a program in an enclave, with its data unsealed only there",
    "ray": "run a script on a Ray cluster whose nodes are enclaves that talk through the mesh",
    "mesh": "show the mesh of the enclaves that run here: peers, tunnels, bytes, refusals",
    "export": "make the ONNX file that `serve` runs of a PyTorch, Keras, TensorFlow or scikit-learn model",
    "serve": "serve a sealed model from an enclave",
    "plan": "cut a model into stages that fit their enclaves, and predict what they cost",
    "predict": "appraise a service, then send it inputs",
    "verify": "walk a model back to the program, policy and data that it was made from",
    "attest": "say what evidence is, whether its vendor vouches for it, and whether a policy wants it",
    "policy": "write, check, sign, compare and apply the document that says what may run",
    "cas": "run a configuration and attestation service, or talk to one",
    "mpc": "compute on secrets: two servers that do not collude, and a dealer that sees no data",
    "measure": "print the measurement of a program and its parts, and why it is not what it was",
    "gramine": "write the manifest of a program's SGX enclave",
    "image": "verify, measure and unpack a container image, without running it",
    "sbom": "list what an enclave trusts, and how large that is",
    "doctor": "say what this machine offers and what is missing for what",
}


class Verb(Protocol):
    """What a module of this package offers to `main`."""

    def configure(self, parser: Parser) -> None:
        """Add the verb's arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; the result is the exit status."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status (`errors.py` lists those of failures)."""
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:  # also while modules are imported and arguments read
        return 128 + signal.SIGINT
    finally:
        early.end()  # of a run that failed before it measured anything


def _main(argv: list[str]) -> int:
    early.begin(argv)
    Parser.as_json = "--json" in (argv[: argv.index("--")] if "--" in argv else argv)
    parser = Parser(
        prog="strongroom",
        description="Train and serve machine-learning models on machines their owners do not trust.",
        epilog="`strongroom VERB --help` explains one verb.  Start with `strongroom demo`.",
    )
    parser.add_argument("--version", action="version", version=f"strongroom {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, summary in VERBS.items():
        sub = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        sub.set_defaults(parser=sub)
        if name == chosen:
            verb = _load(name)
            sub.add_argument("--debug", action="store_true", help=DEBUG)
            verb.configure(sub)
    args, unknown = parser.parse_known_args(argv)
    if unknown:  # the verb's own usage is the one that helps
        getattr(args, "parser", parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if args.verb is None:
        parser.print_help()
        return 2
    # A service manager's SIGTERM ends a command as Ctrl-C does: every `finally` runs.
    signal.signal(signal.SIGTERM, _terminate)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, _terminate)
    output.show_log()
    try:
        status = verb.run(args)
        sys.stdout.flush()  # while a broken pipe can still be answered
        return status
    except StrongroomError as error:
        return _fail(error, args)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "strongroom":
            raise
        missing = MissingDependencyError(
            f"python package: {error.name} is not installed", hint="strongroom doctor says which extra brings it"
        )
        return _fail(missing, args)
    except BrokenPipeError:
        # The reader of a pipe left, as `head` does; say nothing and let the interpreter's last flush go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Terminated:
        return 128 + signal.SIGTERM
    except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        return _fail(UsageError(_describe(error)), args)
    except OSError as error:
        hint = None
        if error.errno == errno.ENOSPC and not error.filename:
            hint = "the disk of STRONGROOM_HOME, of a vault that is written, or of what the output goes to is full"
        return _fail(StrongroomError(_describe(error), hint=hint), args)


def _load(name: str) -> Verb:
    module = importlib.import_module(f"strongroom.cli.{name}")
    if hasattr(module, "__path__"):  # a verb of several files is a package
        module = importlib.import_module(f"{module.__name__}.verb")
    verb: Verb = module
    return verb


class Terminated(BaseException):
    """SIGTERM or SIGHUP came."""


def _terminate(signum: int, frame: object) -> None:
    raise Terminated


def _describe(error: OSError) -> str:
    reason = (error.strerror or str(error)).lower()
    return f"{error.filename}: {reason}" if error.filename else reason


def _fail(error: StrongroomError, args: argparse.Namespace) -> int:
    """Say it; `error` may stand for the one that is handled just now, whose stack trace tells where."""
    if args.debug:
        traceback.print_exc()
    as_json = getattr(args, "json", False)
    try:
        sys.stdout.flush()
        output.error(error, as_json=as_json)
    except OSError:  # standard output is what fails, as on a full disk: what it holds is lost
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        output.error(error)
    return error.exit_code
