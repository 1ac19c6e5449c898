"""Every action of every verb is imported and explains itself: they are looked for only when they are called."""

from __future__ import annotations

import argparse
import importlib
import inspect

import pytest

from strongroom.cli.main import VERBS, _load, main
from strongroom.cli.parser import Parser


def actions(parser: argparse.ArgumentParser) -> list[tuple[str, ...]]:
    """The words of all actions below a parser, however deep."""
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])  # adds the arguments, if that waits for the first use
    found: list[tuple[str, ...]] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                found += [(name,), *((name, *words) for words in actions(below))]
    return found


def verb(name: str) -> Parser:
    parser = Parser(prog=f"strongroom {name}")
    _load(name).configure(parser)
    return parser


@pytest.mark.parametrize("name", VERBS)
def test_every_action_prints_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ((), *actions(verb(name))):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([name, *words, "--help"])
        said = capsys.readouterr()
        assert (ended.value.code, said.err) == (0, ""), words
        assert said.out.startswith(f"usage: strongroom {' '.join((name, *words))}"), words


@pytest.mark.parametrize("name", ["vault", "spot"])
def test_what_does_an_action_is_where_the_verb_looks_for_it(name: str) -> None:
    known = importlib.import_module(f"strongroom.cli.{name}.verb").ACTIONS
    assert {words[0] for words in actions(verb(name))} == set(known)
    for action, (_, module, _) in known.items():
        assert callable(getattr(importlib.import_module(f"strongroom.cli.{name}.{module}"), action)), action


@pytest.mark.parametrize("name", ["attest", "policy", "mpc"])
def test_actions_in_modules_of_their_own_can_be_run(name: str) -> None:
    for words in actions(verb(name)):
        module = importlib.import_module(f"strongroom.cli.{name}.{words[0]}")
        assert list(inspect.signature(module.run).parameters) == ["args"], words
