"""`strongroom policy check`: everything that is wrong with a document, by line and key."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from strongroom.cas.policy.difference_rules import moment
from strongroom.cas.policy.lines import Lines, syntax_line
from strongroom.cas.policy.network import PEM
from strongroom.cas.policy.table import Problem
from strongroom.cas.policy.templates import parse_template
from strongroom.cas.policy.version import Policy, Program, parse_policy, policy_problems
from strongroom.cli import output
from strongroom.cli.policy.files import show, warn_of_zeros
from strongroom.cli.run.outside import is_root
from strongroom.cli.run.verb import check_launchable
from strongroom.cli.workspace import read_document
from strongroom.errors import EnclaveError, PolicyError, printable


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
    warn_of_zeros(policy, args.policy)
    for warning in _warnings(policy, int(time.time())):
        output.warn(warning)
    told = _summary(policy)
    if args.json:
        output.result({"valid": True} | told | {"problems": []})
    else:
        show(told)
    return 0


def _warnings(policy: Policy, now: int) -> list[str]:
    """What may be said, and hardly anybody wants."""
    told = []
    if policy.expires is not None and policy.expires <= now:
        told.append("policy.expires: has passed, and nothing attests under it")
    for person in policy.administrators:
        if "apply" in person.may and policy.owners is None:
            told.append(f"administrators.{person.name}: may apply, without owners: decides alone what gets the secrets")
    named = {name for word in (policy.program or Program(())).command for name in parse_template(word).names}
    for name in sorted(named):
        told.append(f"program.command: holds the secret {name}, for every process of the enclave to see")
    for rule in policy.paths:
        if rule.rule == "host":
            told.append(f"paths: what is below {rule.path} is the host's, which reads and changes it")
    for each in policy.egress:
        if each.tls == "program":
            told.append(f"egress: {each.host}:{each.port}: the program itself judges who answers there")
        elif PEM.fullmatch(each.ca) and not is_root(each.ca):
            told.append(f"egress.ca: {each.host}:{each.port}: is no root: no server is convincing by it")
    try:
        check_launchable(policy)
    except EnclaveError as error:
        told.append(f"{error.message}: `strongroom run` refuses the policy, and its measurement does not cover this")
    return told


def _summary(policy: Policy) -> dict[str, object]:
    told: dict[str, object] = {"policy": policy.name, "version": policy.version, "digest": policy.digest}
    if policy.owners is not None:
        told["owners"] = list(policy.owners.keys)
        told["threshold"] = policy.owners.threshold
    if policy.administrators:
        told["administrators"] = [each.name for each in policy.administrators]
    if policy.expires is not None:
        told["expires"] = moment(policy.expires)
    if policy.instances is not None:
        told["instances"] = policy.instances
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
