"""`strongroom cas unseal`, `share-key` and `rekey`: how a CAS's root secret is kept, and how it is given to it."""

from __future__ import annotations

import argparse
from pathlib import Path

from strongroom.attest.attester import Attester
from strongroom.cas.policy.version import parse_reference
from strongroom.cas.state.root_secret import WAYS, open_root_secret, read_record, rekey
from strongroom.cas.state.trust_disk import MASTER_KEY, TrustDisk
from strongroom.cas.state.way import Unsealer
from strongroom.cas.unseal.holder import give_share
from strongroom.cas.unseal.peer import Peer
from strongroom.cas.unseal.sgx import KEYS, Sgx
from strongroom.cas.unseal.share_files import ShareFile, create_share_key, load_share_key, public_text, read_holders
from strongroom.cas.unseal.shares import Shares
from strongroom.cas.unseal.snp import Snp
from strongroom.cas.unseal.tpm import DEFAULT_PCRS, TpmSealed
from strongroom.channel import bind
from strongroom.cli import output
from strongroom.cli.cas import attester as cas_attester
from strongroom.cli.cas.address import URL_VARIABLE, url_of
from strongroom.cli.parser import add_debug
from strongroom.cli.workspace import Home, read_document
from strongroom.errors import UsageError

ACTIONS = {
    "unseal": "give a sealed CAS one's share of its root secret",
    "share-key": "make the key that one's shares are sealed to, or show it",
    "rekey": "keep a CAS's root secret in another way",
}
_MAX_PIN_FILE = 4096
_ENCLOSED = (Peer.way, Snp.way, Sgx.way)


def configure(parser: argparse.ArgumentParser, action: str) -> None:
    """Add the options of one of `ACTIONS`."""
    if action == "unseal":
        parser.add_argument("--share", type=Path, required=True, metavar="FILE", help="one's share")
        parser.add_argument(
            "--key", type=Path, metavar="FILE", help="the key that it is sealed to (default: one's own)"
        )
        parser.add_argument(
            "--cas",
            metavar="URL",
            help=f"the sealed CAS; its messages say where it waits (default: that of {URL_VARIABLE})",
        )
        shown = parser.add_mutually_exclusive_group(required=True)
        shown.add_argument("--reference", type=Path, metavar="FILE", help="what must run there: a table [reference]")
        shown.add_argument(
            "--without-evidence", action="store_true", help="trust the machine, and whoever answers at that address"
        )
        parser.add_argument(
            "--cas-key", metavar="sha256:...", help="the key of this start, as the CAS's operator reads it to you"
        )
        parser.add_argument(
            "--allow-rekey",
            default="",
            metavar="WAY",
            help="the CAS may keep its root secret in that way from now on; its refusal says which, in the same words",
        )
    elif action == "share-key":
        parser.add_argument("key", type=Path, nargs="?", metavar="FILE", help="the key file (default: one's own)")
    else:
        parser.add_argument(
            "--state", type=Path, metavar="DIR", help="the CAS's (default: this user's development CAS)"
        )
        parser.add_argument(
            "--from",
            dest="source",
            choices=[Peer.way],
            metavar="WAY",
            help="peer: get the secret from an instance that runs (default: as it is kept now)",
        )
        parser.add_argument("--host", default="127.0.0.1", help="where to wait for shares (default: %(default)s)")
        parser.add_argument("--port", type=int, default=0, help="the port (default: any free one)")
        parser.add_argument("--peer", metavar="URL", help="--from peer: the instance that runs")
        parser.add_argument("--old-pin-file", type=Path, metavar="FILE", help="the PIN of the TPM that keeps it now")
        cas_attester.add(parser)
        add_ways(parser, required=True)
    add_debug(parser)
    output.add_json(parser)


def add_ways(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """The options that say how a root secret is kept. `--peer` is the caller's."""
    ways = parser.add_argument_group("the root secret")
    ways.add_argument(
        "--unseal",
        choices=WAYS,
        required=required,
        metavar="WAY",
        help=f"how it is kept: {', '.join(WAYS)} (default: as before; trust-disk for a new CAS)",
    )
    ways.add_argument(
        "--holder",
        action="append",
        default=[],
        metavar="NAME=x25519:...",
        help="shares: who gets one, sealed to that key; once for each",
    )
    ways.add_argument("--threshold", type=int, metavar="N", help="shares: how many of them unseal the CAS")
    ways.add_argument("--cas-root", metavar="sha256:...", help="peer: the fingerprint of the CAS's root key")
    ways.add_argument(
        "--pcrs",
        type=_registers,
        default=DEFAULT_PCRS,
        metavar="N,N",
        help=f"tpm: the registers that must be as they are now (default: {','.join(map(str, DEFAULT_PCRS))})",
    )
    ways.add_argument("--pin-file", type=Path, metavar="FILE", help="tpm: a PIN besides, the file's first line")
    ways.add_argument("--sealing-key", choices=KEYS, metavar="KEY", help=f"sgx: {KEYS[0]} (default) or {KEYS[1]}")
    ways.add_argument("--vmpl", type=int, default=0, metavar="N", help="snp: the privilege level to derive for")


def _registers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def unsealer(
    args: argparse.Namespace,
    directory: Path,
    *,
    attester: Attester | None,
    way: str | None = None,
    peer: str | None = None,
    then: str = "",
) -> Unsealer:
    """The way that the options of `add_ways` say.

    Args:
        attester: makes the CAS's evidence, for `peer` and `shares`; None where it has none.
        way: in place of `--unseal`; without either the one that the CAS has, and for a new one `trust-disk`.
        peer: the address of an instance that runs.
        then: as `Shares.then`.

    Raises:
        UsageError, FormatError: options that are wrong, or belong to another way.
    """
    record = read_record(directory)
    way = way or args.unseal or (str(record["unseal"]) if record else TrustDisk.way)
    for option, value, belongs in (
        ("--holder", args.holder, "shares"),
        ("--threshold", args.threshold, "shares"),
        ("--pin-file", args.pin_file, "tpm"),
        ("--sealing-key", args.sealing_key, "sgx"),
    ):
        if value and belongs != way:
            raise UsageError(
                f"{option}: belongs to --unseal {belongs}, and the way is {way}", hint="leave it out, or name that way"
            )
    match way:
        case "shares":
            holders = read_holders(args.holder)
            return Shares(
                directory, holders, args.threshold, attester=attester, tell=lambda line: output.note(line), then=then
            )
        case "peer":
            return Peer(directory, peer, args.cas_root, attester=attester)
        case "tpm":
            return TpmSealed(pcrs=args.pcrs, pin=_pin(args.pin_file))
        case "snp":
            return Snp(args.vmpl)
        case "sgx":
            return Sgx(args.sealing_key)
    return TrustDisk(directory)


def _pin(path: Path | None) -> bytes:
    if path is None:
        return b""
    with path.open("rb") as file:
        pin = file.read(_MAX_PIN_FILE).split(b"\n")[0].rstrip(b"\r")
    if not pin:
        raise UsageError(f"{path}: its first line is empty, wanted a PIN")
    return pin


def run(args: argparse.Namespace, home: Home) -> int:
    if args.action == "share-key":
        return _share_key(args, home)
    return _rekey(args, home) if args.action == "rekey" else _unseal(args, home)


def _share_key(args: argparse.Namespace, home: Home) -> int:
    path = args.key or home.path / "share.key"
    if path.exists():
        key = load_share_key(path)
    else:
        key = create_share_key(path)
        output.note(f"key written to {path}: without it the shares sealed to it are lost")
    if args.json:
        output.result({"public": public_text(key.public)})
    else:
        output.stdout.print(public_text(key.public), markup=False, soft_wrap=True)
    return 0


def _unseal(args: argparse.Namespace, home: Home) -> int:
    url, reference = url_of(args), None
    if not url:
        raise UsageError("--cas: missing", hint="the messages of the sealed CAS say where it waits")
    if args.without_evidence:
        whom = "the machine of its operator" if args.cas_key else "whoever answers at that address"
        output.warn(f"without evidence: the share goes to {whom}")
    else:
        reference = parse_reference(read_document(args.reference))
    file, key = ShareFile.load(args.share), load_share_key(args.key or home.path / "share.key")
    told, result = give_share(url, file, key, reference=reference, key_of_start=args.cas_key, then=args.allow_rekey)
    if args.json:
        appraised = {"tee": result.tee, "measurement": result.measurement} if result else None
        output.result({**told, "appraised": appraised})
        return 0
    if result is not None:
        output.note(f"the CAS is {result.tee} {result.measurement}")
    opened = "it opens" if told.get("open") is True else f"{told.get('shares')} of {told.get('threshold')} are there"
    output.stdout.print(f"share {file.index} given; {opened}", markup=False, soft_wrap=True)
    return 0


def _plan(new: Unsealer) -> str:
    return new.plan if isinstance(new, Shares) else new.way


def _rekey(args: argparse.Namespace, home: Home) -> int:
    directory = args.state or home.path / "cas"
    record = read_record(directory)
    if record is None and args.source is None and not (directory / MASTER_KEY).exists():
        raise UsageError(
            f"{directory}: holds no CAS whose root secret is kept",
            hint="--state DIR names the CAS's; --from peer gets the secret from an instance that runs",
        )
    now = str(record["unseal"]) if record else TrustDisk.way
    if args.unseal == TrustDisk.way and (args.source or now) in _ENCLOSED:
        raise UsageError(
            f"rekey: {args.source or now} keeps the root secret from this machine's owner, and a file does not",
            hint="--unseal shares, for one, gives it to nobody",
        )
    attester = cas_attester.cas_attester(args, home)
    new = unsealer(args, directory, attester=attester)
    if args.source is not None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        secret = Peer(directory, args.peer, args.cas_root, attester=attester).recover({})
    else:
        kept = argparse.Namespace(
            **vars(args) | {"holder": [], "threshold": None, "sealing_key": None, "pin_file": args.old_pin_file}
        )
        old = unsealer(kept, directory, attester=attester, way=now, peer=args.peer, then=_plan(new))
        with bind(args.host, args.port) as sock:
            secret = open_root_secret(directory, old.at(sock) if isinstance(old, Shares) else old)
    rekey(directory, secret, new)
    if new.way == TrustDisk.way:
        output.warn("the root secret lies in a file on this machine: run the CAS where its owner trusts the machine")
    told = {"state": str(directory), "unseal": new.way, "before": now}
    if args.json:
        output.result(told)
    else:
        output.stdout.print(f"root secret kept by {new.way} from now on; by {now} before", markup=False, soft_wrap=True)
    return 0
