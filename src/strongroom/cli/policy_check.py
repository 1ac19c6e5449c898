"""`strongroom policy check`: everything that is wrong with a document, by line and key."""

from __future__ import annotations

import argparse
from pathlib import Path

from strongroom.cas.document import Problem
from strongroom.cas.lines import Lines, syntax_line
from strongroom.cas.policy import Policy, parse_policy, policy_problems
from strongroom.cli import output
from strongroom.cli.policy_files import show
from strongroom.cli.workspace import read_document
from strongroom.errors import PolicyError, printable


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", type=Path, metavar="FILE")
    parser.add_argument("--draft", action="store_true", help="let reference.measurements be missing")
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    text = read_document(args.policy)
    problems = policy_problems(text, draft=args.draft)
    if problems:
        return _explain(args, text, problems)
    policy = parse_policy(text, draft=args.draft)
    if any(not value.strip("0") for value in policy.reference.measurements):
        output.warn(f"reference.measurements: zeros; `strongroom measure --policy {args.policy}` prints the value")
    told = _summary(policy)
    if args.json:
        output.result({"valid": True} | told | {"problems": []})
    else:
        show(told)
    return 0


def _summary(policy: Policy) -> dict[str, object]:
    told: dict[str, object] = {"policy": policy.name, "version": policy.version, "digest": policy.digest}
    if policy.owners is not None:
        told["owners"] = list(policy.owners.keys)
        told["threshold"] = policy.owners.threshold
    return told


def _explain(args: argparse.Namespace, text: str, problems: list[Problem]) -> int:
    found = sorted(((_line(text, problem), problem) for problem in problems), key=lambda pair: pair[0])
    if args.json:
        wire = [
            {"line": line, "key": problem.key, "error": problem.error.message, "hint": problem.error.hint}
            for line, problem in found
        ]
        output.result({"valid": False, "problems": wire, "exit_status": PolicyError.exit_code})
        return PolicyError.exit_code
    for line, problem in found:
        output.stdout.print(printable(f"{args.policy}:{line}: {problem.error.message}"), markup=False, soft_wrap=True)
        if problem.error.hint:
            output.stdout.print(printable(f"    {problem.error.hint}"), markup=False, soft_wrap=True)
    count = f"{len(problems)} problem{'' if len(problems) == 1 else 's'}"
    output.error(PolicyError(f"{args.policy}: {count}"))
    return PolicyError.exit_code


def _line(text: str, problem: Problem) -> int:
    if problem.where:
        return Lines(text).of(problem.where)
    return syntax_line(text, problem.error.message)
