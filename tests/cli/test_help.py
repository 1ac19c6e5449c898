"""Help fits a terminal of 80 columns, of every verb and every action of one."""

import argparse

import pytest

from strongroom.cli import main
from strongroom.cli.parser import Parser


def actions(parser):
    """The parsers below one, by name."""
    found = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    return {name: below for each in found for name, below in each.choices.items()}


def too_wide(parser):
    if parser.module is not None:
        module, parser.module = parser.module, None
        main.importlib.import_module(module).configure(parser)
    wide = [f"{len(line)}: {line}" for line in parser.format_help().splitlines() if len(line) >= 80]
    return wide + [line for below in {*actions(parser).values()} for line in too_wide(below)]


@pytest.mark.parametrize("verb", main.VERBS)
def test_no_line_is_wider_than_a_terminal(monkeypatch, verb):
    monkeypatch.setenv("COLUMNS", "80")
    parser = Parser(prog=f"strongroom {verb}")
    main._load(verb).configure(parser)
    assert too_wide(parser) == []


def test_an_example_that_takes_two_lines_can_still_be_copied(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main.main(["attest", "appraise", "--help"])
    example = capsys.readouterr().out.partition("Example: ")[2]
    assert example.count("\n") == 1 + example.count(" \\\n  ") == 2
