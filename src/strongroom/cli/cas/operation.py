"""The options of `strongroom cas start` that say whom a CAS lets log in, what it limits and what it counts."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from strongroom.cas.api.metrics import Metrics, Prometheus
from strongroom.cas.api.operation import Operation
from strongroom.cas.callers.limits import POLICY_RATE, RATE, Limits
from strongroom.cas.callers.oidc import OidcAuthenticator, https_fetch
from strongroom.cli import output
from strongroom.errors import UsageError

_ACCESS = "strongroom.cas.access"


def options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("who may log in and make policies")
    group.add_argument(
        "--oidc",
        action="append",
        default=[],
        metavar="ISSUER",
        help="take tokens of this OpenID Connect issuer, https://...; may be given again",
    )
    group.add_argument("--oidc-audience", metavar="NAME", help="what its tokens must be for")
    group.add_argument("--oidc-ca", type=Path, metavar="FILE", help="the issuers' own CA, PEM (default: the system's)")
    group.add_argument(
        "--namespaces",
        choices=("open", "allotted"),
        default="open",
        help="whether the first policy of a namespace takes it, or an --operator allots it (default: %(default)s)",
    )
    group = parser.add_argument_group("limits, metrics and logs")
    group.add_argument(
        "--rate", type=_rate, default=RATE, metavar="N", help="requests a second of one address; 0: any (default: 2000)"
    )
    group.add_argument(
        "--policy-rate",
        type=_rate,
        default=POLICY_RATE,
        metavar="N",
        help="attestations a second under one policy; 0: any (default: 1000)",
    )
    group.add_argument("--limit-loopback", action="store_true", help="limit addresses of this machine too")
    group.add_argument("--metrics", metavar="HOST:PORT", help="answer Prometheus there, in plain HTTP")
    group.add_argument("--metrics-names", action="store_true", help="let metrics name policies")
    group.add_argument("--access-log", type=Path, metavar="FILE", help="add a JSON line for each answer to this file")


def operation(args: argparse.Namespace) -> Operation:
    """What the options say.

    Raises:
        UsageError: one is useless without another.
        MissingDependencyError: an extra is not installed.
    """
    if bool(args.oidc) != bool(args.oidc_audience) or (args.oidc_ca and not args.oidc):
        raise UsageError(
            "--oidc, --oidc-audience: one is useless without the other",
            hint="the audience is what the issuer's tokens say in `aud`",
        )
    if args.metrics_names and not args.metrics:
        raise UsageError("--metrics-names: goes with --metrics")
    authenticator = None
    if args.oidc:
        authenticator = OidcAuthenticator(args.oidc, args.oidc_audience, fetch=https_fetch(args.oidc_ca))
    return Operation(
        authenticator=authenticator,
        allotted=args.namespaces == "allotted",
        limits=Limits.of(args.rate, args.policy_rate, loopback=args.limit_loopback),
        metrics=Prometheus(names=args.metrics_names) if args.metrics else Metrics(),
        access_log=args.access_log is not None,
    )


@contextmanager
def told(args: argparse.Namespace, chosen: Operation | None) -> Iterator[Callable[[], None]]:
    """Answer Prometheus, and write the access log, while a CAS runs; what ends the answers before that.

    Raises:
        PortInUseError: Prometheus' address is taken.
    """
    with _access_log(args.access_log), ExitStack() as answered:
        if chosen is not None and isinstance(chosen.metrics, Prometheus):
            host, port = _address(args.metrics)
            bound = answered.enter_context(chosen.metrics.serving(host, port))
            shown = f"[{host}]" if ":" in host else host
            output.note(f"metrics at http://{shown}:{bound}/metrics, for anybody who reaches that address")
        yield answered.close


@contextmanager
def _access_log(path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    logger = logging.getLogger(_ACCESS)
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--access-log: {path}: {(error.strerror or str(error)).lower()}") from None
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and len(port) < 6 and int(port) < 65536):
        raise UsageError(f"--metrics: got {text[:80]!r}, wanted HOST:PORT", hint="127.0.0.1:9464, or 127.0.0.1:0")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 <= rate <= 1_000_000:
        raise argparse.ArgumentTypeError(f"got {text}, wanted 0 to 1,000,000")
    return rate
