"""The act of the demo that needs no enclave: the same trained model predicts on secret shares.

`examples/mpc_predict.py` runs as three processes: P1 unseals the model, P0 has the images, D deals. Every answer has to
be the enclave's, or the demo fails.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from strongroom.cli.digits import Digits
from strongroom.cli.examples import example
from strongroom.cli.show import Show
from strongroom.cli.workspace import SealedVault
from strongroom.crypto import digest
from strongroom.errors import IntegrityError, StrongroomError
from strongroom.mpc import audit

SCRIPT: Final = "mpc_predict.py"
_COMPARED: Final = 2 << 20  # about 2 s: comparisons for which images are taken
_SHOWN: Final = 8  # answers
_APART: Final = 0.05  # of a logit: what fixed-point numbers of 16 bits may differ by, and far more
_ENDS: Final = 10.0  # seconds

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Answers:
    """What the enclave said of the test set, and how long it took.

    Attributes:
        alone: seconds for one image by itself.
        together: seconds for all.
    """

    logits: Array
    alone: float
    together: float


def shared_prediction(
    show: Show, letter: str, work: Path, digits: Digits, model: SealedVault, enclave: Answers
) -> dict[str, Any]:
    """Play the act in a directory, and return what was seen.

    Raises:
        StrongroomError: a party failed, or the answers are not the enclave's.
        IntegrityError: something else was revealed than the answers.
    """
    with show.act(letter, "the same model predicts on secret shares: no enclave, no server that sees anything") as act:
        images = digits.test_input()
        images = images[: min(len(images), max(1, _COMPARED // _comparisons(images.shape[-1])))]
        np.savez(work / "asked.npz", image=images)
        show.doing("two servers and a dealer start")
        _run(work, model, images)
        with np.load(work / "answers.npz") as found:
            logits, alone, together = (found[name] for name in ("logits", "alone", "together"))
        report = json.loads((work / "shares.json").read_text())["parties"]
        show.fact(
            "three processes of this user, so one trust domain here; on three hosts: strongroom mpc run --rank --peers"
        )
        right = _compare(show, digits, enclave.logits[: len(images)], logits)
        _traffic(show, report)
        _reveals(show, work)
        each = [1000 * seconds for seconds in (enclave.together / len(enclave.logits), float(together) / len(images))]
        rows = (
            ("", "the enclave", "secret shares"),
            ("one image", f"{1000 * enclave.alone:.1f} ms", f"{1000 * float(alone):.1f} ms"),
            ("many at once, each", f"{each[0]:.2f} ms", f"{each[1]:.2f} ms"),
            ("who is trusted", "its maker", "two, not to collude"),
        )
        show.draw("\n".join(f"{what:20}{one:>14}{other:>22}" for what, one, other in rows))
        act.outcome = (
            f"{len(images)} images predicted on shares, {right / len(images):.2%} right: the enclave's answers"
        )
        act.protected = (
            "images from the model's owner, the model from theirs, both from the dealer and every network, with no "
            "hardware to trust (here one trust domain: three processes)"
        )
    return {
        "images": len(images),
        "accuracy": right / len(images),
        "milliseconds": {"one": 1000 * float(alone), "each": each[1]},
        "enclave_milliseconds": {"one": 1000 * enclave.alone, "each": each[0]},
        "received": {name: sum(facts["received"].values()) for name, facts in report.items()},
        "rounds": report["P0"]["rounds"],
    }


def _comparisons(side: int) -> int:
    """What the network of train_digits.py compares for one image: its ReLUs, and its pooling's three of four."""
    first, second, pooled = side - 2, side - 4, (side - 4) // 2
    return 16 * first**2 + 32 * second**2 + 3 * 32 * pooled**2 + 64


def _run(work: Path, model: SealedVault, images: Array) -> None:
    script = example(SCRIPT)
    # The model's owner allows this program to give the other server the answers, and nothing else.
    (work / "shares.policy").write_text(
        'version = 1\n\n[[allow]]\nowner = "P1"\nto = ["P0"]\nshapes = [["*", 10]]\n'
        f'program = "sha256:{digest(script.read_bytes()).hex()}"\n'
    )
    command = [sys.executable, "-P", "-m", "strongroom", "mpc", "run"]
    for name, file in (("policy", "shares.policy"), ("audit", "shares.audit"), ("report", "shares.json")):
        command += [f"--{name}", str(work / file)]
    command += [str(script), "--side", str(images.shape[-1]), "--count", str(len(images))]
    command += ["--model", str(model.path), "--images", str(work / "asked.npz"), "--out", str(work / "answers.npz")]
    process = subprocess.Popen(  # noqa: S603  # our own command
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # What libraries leave among the temporary files goes with the rest.
        env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(work)},
    )
    try:
        said, _ = process.communicate()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)  # it ends its three
            process.wait(_ENDS)
    if process.returncode:
        errors = [line for line in said.splitlines() if "error: " in line] or said.splitlines()[-1:]
        raise StrongroomError(f"{SCRIPT}: {' '.join(errors[:1])[:300]}")


def _compare(show: Show, digits: Digits, expected: Array, logits: Array) -> int:
    """How many answers are right. Raises StrongroomError if they are not the enclave's."""
    if logits.shape != expected.shape:
        raise StrongroomError(f"answers: got {logits.shape} from the shares, wanted {expected.shape}")
    labels, apart = digits.test_labels[: len(logits)], float(np.abs(logits - expected).max())
    got, wanted = logits.argmax(1), expected.argmax(1)
    if apart > _APART:
        raise StrongroomError(f"answers: a logit from the shares is {apart:.3f} off the enclave's")
    differing = int((got != wanted).sum())
    show.fact(f"from the shares: {_listed(got)}; from the enclave: {_listed(wanted)}; written: {_listed(labels)}")
    right, alike = int((got == labels).sum()), int((wanted == labels).sum())
    show.fact(
        f"{right} of {len(logits)} right, from the enclave {alike}: "
        + ("every decision is the same" if not differing else f"{differing} decisions differ")
        + f"; no logit is more than {apart:.1e} off"
    )
    return right


def _listed(answers: Array) -> str:
    return " ".join(map(str, answers[:_SHOWN].tolist()))


def _traffic(show: Show, report: dict[str, Any]) -> None:
    received = {name: facts["received"] for name, facts in report.items()}
    show.fact(
        f"P0 received {_size(received['P0']['P1'])} from P1; P1 received {_size(received['P1']['P0'])} from P0 and "
        f"{_size(received['P1']['D'])} from D; D received {_size(sum(received['D'].values()))}"
    )
    show.fact(
        f"all of it masked by fresh randomness, but for the answers; {report['P0']['rounds']} rounds between P0 and P1"
    )


def _reveals(show: Show, work: Path) -> None:
    """Show what was revealed by the servers' own logs. Raises IntegrityError if it is not the answers alone."""
    logs = [audit.read(work / f"shares.audit.{name}") for name in ("P0", "P1")]
    reveals = [record for record in logs[0].records if record.kind == "reveal"]
    if differences := audit.compare(*logs):
        raise IntegrityError(f"audit: {differences[0]}")
    if not reveals or any(record.fields["to"] != ["P0"] or record.fields["shape"][1:] != [10] for record in reveals):
        raise IntegrityError("audit: something else than the answers was revealed")
    where = sorted({f"{Path(record.fields['file']).name}:{record.fields['line']}" for record in reveals})
    show.fact(
        f"revealed: {len(reveals)} times answers, to P0, by {', '.join(where)}; P1's policy allows nothing else, and "
        "the logs of both servers say the same"
    )


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 10**5 else f"{count:,} bytes"
