"""Networks A, B, C and D of the tf-encrypted paper: trained on MNIST in the clear, then asked on secret shares.

- P1 owns the weights, P0 the 10,000 test images; the servers compute on shares, P0 alone is given the answers. Each
  answer is held against the same network's in float64: the accuracy, the decisions that agree, the largest error of a
  logit, and the divergence KL(plain || private) of the two softmax distributions, its mean over the images.
- What the paper has beside it: accuracies and divergences of its Table 3, at its own weights; latencies of its poster,
  on 36 cores.
- Latency and throughput at 1 to 256 images are of three local processes (`mpc_models_parties`), from P0 sharing its
  images to P0 having the answers, warm: the weights' masks were opened by a run that is not counted. They are measured
  in a full run and by ``--plots``.

A quick run asks 200 images, and trains shortly what was not trained before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.harness import Bench, Goal
from benchmarks.mpc_models_data import mnist_test
from benchmarks.mpc_models_paper import NETWORKS, SHORT, WHOLE, in_float64, is_trained, state, trained
from benchmarks.mpc_models_parties import Arrays, Cost, Meter, run_parties
from strongroom import mpc

GOALS: Sequence[Goal] = (
    *(Goal(f"{name}, accuracy, private from plain", 0.05, "points", "at most") for name in NETWORKS),
    *(Goal(f"{name}, KL divergence, mean", 1e-4, "nats", "at most") for name in NETWORKS),
)

IMAGES, QUICK_IMAGES = 10_000, 200
BATCH = {"A": 1000, "B": 250, "C": 250, "D": 500}
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_LEAST = 2.0**-17  # a probability of nothing, at 16 fractional bits


@dataclass(frozen=True)
class Paper:
    """What the paper has for a network: accuracy in percent, divergence, and milliseconds for one image."""

    accuracy: float
    pond_kl: float
    secure_nn_kl: float
    pond_ms: float
    secure_nn_ms: float


PAPER = {
    "A": Paper(97.35, 0.0065, 0.0, 14, 112),
    "B": Paper(99.26, 0.2086, 0.0, 126, 243),
    "C": Paper(99.44, 0.2311, 0.0, 124, 293),
}


@dataclass(frozen=True)
class Comparison:
    """Private answers beside plain ones.

    Attributes:
        plain, private: accuracies, in percent.
        agree: decisions that are the same, in percent.
        kl: the mean of KL(plain || private) of the softmax distributions, in nats.
        error: the largest of a logit.
        seconds: for all images.
    """

    images: int
    plain: float
    private: float
    agree: float
    kl: float
    error: float
    seconds: float = 0.0


def compare(
    plain: NDArray[Any], private: NDArray[Any], labels: NDArray[Any], seconds: float = 0.0, *, scores: bool = True
) -> Comparison:
    """Hold private outputs against plain ones, one row for each image.

    Args:
        scores: they are logits; else probabilities, of which those below 2^-17 count as that.
    """
    decided, said = plain.argmax(1), private.argmax(1)
    return Comparison(
        len(labels),
        100 * float((decided == labels).mean()),
        100 * float((said == labels).mean()),
        100 * float((decided == said).mean()),
        divergence(plain, private) if scores else divergence(np.log(plain.clip(_LEAST)), np.log(private.clip(_LEAST))),
        float(np.abs(np.asarray(plain, np.float64) - private).max()),
        seconds,
    )


def divergence(plain: NDArray[Any], private: NDArray[Any]) -> float:
    """The mean KL divergence of softmax(private) from softmax(plain)."""
    log_p, log_q = log_softmax(plain), log_softmax(private)
    return float((np.exp(log_p) * (log_p - log_q)).sum(1).mean())


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Of each row, in float64."""
    shifted = np.asarray(logits, np.float64) - logits.max(1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


# The parties' programs


def ask(meter: Meter, network: str, weights: str, images: int, batch: int) -> Arrays | None:
    """The answers for the first test images, `batch` at a time."""
    model, logits = _owned(network, weights), []
    for at in range(0, images, batch):
        with meter.run("batch"):
            logits.append(_answer(model, at, min(batch, images - at)))
    return {"logits": np.concatenate(logits)} if meter.party.rank == mpc.P0 else None


def batches(meter: Meter, network: str, weights: str, sizes: Sequence[int], rounds: int) -> Arrays | None:
    """Answers for fresh batches of each size, some times; the first time is for warmth."""
    model = _owned(network, weights)
    for size in sizes:
        for turn in range(rounds + 1):
            with meter.run(f"{size}"):
                _answer(model, turn * size, size)
    return None


def _owned(network: str, weights: str) -> torch.nn.Module:
    return mpc.own(lambda: state(Path(weights)), source=mpc.P1, like=NETWORKS[network]().eval())


def _answer(model: torch.nn.Module, at: int, size: int) -> NDArray[Any]:
    """At P0, which alone looks at the images, the logits for some of them; elsewhere a stand-in."""
    x = mpc.share(lambda: torch.from_numpy(mnist_test()[0][at : at + size]), source=mpc.P0, shape=(size, 1, 28, 28))
    got = mpc.reveal(model(x), to=mpc.P0)
    return got.numpy() if isinstance(got, torch.Tensor) else np.empty((0, 10), np.float32)


# What is measured


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants."""
    found: dict[str, Comparison] = {}
    latencies: dict[str, list[Cost]] = {}
    try:
        for name in NETWORKS:
            accuracy, kl = (goal.name for goal in GOALS if goal.name.startswith(f"{name},"))
            if bench.wants(accuracy, kl):
                found[name] = evaluate(name, quick=bench.quick)
                for goal, value in (
                    (accuracy, abs(found[name].private - found[name].plain)),
                    (kl, found[name].kl),
                ):
                    if bench.wants(goal):
                        bench.record(goal, value)
        if bench.complete:
            for name in NETWORKS:
                latencies[name] = latency(name)
                bench.say(f"{name}, latency at {BATCHES[0]} to {BATCHES[-1]} images")
    finally:
        show(found, latencies)
    if bench.plots and latencies:
        draw(bench.plots / "mpc-latency.png", latencies)
        rows = {name: [asdict(cost) for cost in costs] for name, costs in latencies.items()}
        (bench.plots / "mpc-latency.json").write_text(json.dumps(rows, indent=2) + "\n")


def evaluate(name: str, *, quick: bool = False, images: int | None = None) -> Comparison:
    """Ask a network, in the clear and on shares."""
    recipe = SHORT if quick and not is_trained(name, WHOLE) else WHOLE
    weights = trained(name, recipe)
    model = NETWORKS[name]()
    model.load_state_dict(state(weights))
    x, labels = mnist_test()
    count = images or (QUICK_IMAGES if quick else IMAGES)
    outcome = run_parties(ask, network=name, weights=str(weights), images=count, batch=min(BATCH[name], count))
    seconds = sum(cost.seconds for cost in outcome.costs)
    return compare(in_float64(model, x[:count]), outcome.arrays["logits"], labels[:count], seconds)


def latency(name: str, sizes: Sequence[int] = BATCHES, rounds: int = 5) -> list[Cost]:
    """The median run at each size."""
    outcome = run_parties(batches, network=name, weights=str(trained(name, WHOLE)), sizes=list(sizes), rounds=rounds)
    return [outcome.median(f"{size}") for size in sizes]


# What is shown


def show(found: dict[str, Comparison], latencies: dict[str, list[Cost]]) -> None:
    """The paper's table with ours beside it, and the latencies."""
    console = Console(highlight=False, width=120, soft_wrap=True)
    if found:
        table = _table("network", "images", "plain %", "private %", "agree %", "KL", "largest error", "s")
        for column in ("paper: plain %", "KL, Pond", "KL, SecureNN"):
            table.add_column(column, justify="right")
        for name, got in found.items():
            paper = PAPER.get(name)
            table.add_row(
                name,
                f"{got.images:,}",
                *(f"{value:.2f}" for value in (got.plain, got.private, got.agree)),
                *(f"{value:.1e}" for value in (got.kl, got.error)),
                f"{got.seconds:,.0f}",
                *((f"{paper.accuracy:.2f}", f"{paper.pond_kl}", f"{paper.secure_nn_kl}") if paper else ("", "", "")),
            )
        console.print(table)
    if latencies:
        table = _table("ms for", *(f"{size}" for size in BATCHES), "images/s", "paper: Pond, SecureNN")
        for name, costs in latencies.items():
            best = max(int(cost.name) / cost.seconds for cost in costs)
            paper = PAPER.get(name)
            row = [f"{1000 * cost.seconds:,.1f}" for cost in costs]
            table.add_row(name, *row, f"{best:,.0f}", f"{paper.pond_ms:g}, {paper.secure_nn_ms:g}" if paper else "")
        console.print(table)


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


_COLOURS = {"A": "#00755e", "B": "#c2410c", "C": "#1d4ed8", "D": "#7c3aed"}


def draw(path: Path, latencies: dict[str, list[Cost]]) -> None:
    """Latency and throughput over the size of a batch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
    for name, costs in latencies.items():
        sizes = [int(cost.name) for cost in costs]
        milliseconds = [1000 * cost.seconds for cost in costs]
        style: dict[str, Any] = {"color": _COLOURS[name], "marker": "o", "markersize": 4}
        left.plot(sizes, milliseconds, label=f"network {name}", **style)
        right.plot(sizes, [size / cost.seconds for size, cost in zip(sizes, costs, strict=True)], **style)
        if name in PAPER:
            left.plot([1], [PAPER[name].pond_ms], color=_COLOURS[name], marker="x", linestyle="none")
    left.plot([], [], color="#555555", marker="x", linestyle="none", label="the paper's Pond, 36 cores")
    left.set(title="Latency", ylabel="ms")
    right.set(title="Throughput", ylabel="images / s")
    for axes in (left, right):
        axes.set(xlabel="images at once", xscale="log", yscale="log")
        axes.set_xticks(BATCHES, [f"{size}" for size in BATCHES])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
    left.legend(frameon=False, fontsize=9)
    figure.suptitle("Networks A to D on secret shares: two servers and a dealer on one machine", fontsize=11)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
