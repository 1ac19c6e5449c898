"""Models that others made, asked on secret shares: ONNX files, Keras, scikit-learn, a language model, ResNets.

- P1 owns each model, P0 the input, and P0 alone is given the answer; three local processes (`mpc_models_parties`). The
  dealer and P0 load the architecture, not the weights.
- The classifiers are asked a test set, here and in the clear: by ONNX Runtime, or Keras. The image classifiers of
  ``$STRONGROOM_DATA/onnx`` are asked all that is there of their set, those of MNIST 10,000 images; the one that takes
  one image at a time, 500. Errors are of logits, or of probabilities where a model ends with them, relative to the
  largest output.
- stories260K says what it says greedily, a token at a time, and must say the 200 tokens of llama2.c's reference. P0
  reads along: it is revealed the token alone, which goes on into the embedding as the secret that it was.
- ResNet-18 and -50 have random weights and take an image of 224 x 224; they run with more fractional bits and a smaller
  bound, which costs the same and loses less over 50 layers.

A quick run asks 16 images, 4 tokens and ResNet-18, and trains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks import mpc_models_programs as programs
from benchmarks.harness import Bench, Goal
from benchmarks.mpc_accuracy import Comparison, compare
from benchmarks.mpc_models_data import data
from benchmarks.mpc_models_given import MODELS, in_the_clear, run_onnx
from benchmarks.mpc_models_llama import BOS, greedy, load, read_tokens, text
from benchmarks.mpc_models_parties import Outcome, run_parties
from benchmarks.mpc_models_resnet import RESNETS, random_image, with_random_weights
from strongroom.mpc import Settings

ACCURACY = "accuracy, private from plain"
ERROR = "error / largest output"
STORY = "stories260K, tokens that differ"
PROMPT = f"stories260K through ONNX, {ERROR}"

GOALS: Sequence[Goal] = (
    *(Goal(f"{name}, {ACCURACY}", 0.05, "points", "at most") for name in MODELS),
    *(Goal(f"{name}, {ERROR}", 2e-3, "x", "at most") for name in MODELS),
    Goal(STORY, 0, "tokens", "at most"),
    Goal(PROMPT, 2e-3, "x", "at most"),
    *(Goal(f"{name}, {ERROR}", 2e-3, "x", "at most", full_only=name == "ResNet-50") for name in RESNETS),
)

QUICK_IMAGES, QUICK_TOKENS, TOKENS = 16, 4, 200
DEEP = Settings(frac=20, bound=10, seconds=300)
"""For networks of many layers: errors of one layer are 16 times smaller, and their values stay small."""


@dataclass(frozen=True)
class Asked:
    """A row of what is shown: a classifier on a test set."""

    compared: Comparison
    relative: float
    scores: bool
    outcome: Outcome


@dataclass(frozen=True)
class Ran:
    """A row of what is shown: a model that was run for its cost."""

    what: str
    error: str
    outcome: Outcome
    unit: str


def measure(bench: Bench) -> None:
    """Measure every goal that `bench` wants."""
    asked: dict[str, Asked] = {}
    ran: dict[str, Ran] = {}
    try:
        for name in MODELS:
            accuracy, error = f"{name}, {ACCURACY}", f"{name}, {ERROR}"
            if bench.wants(accuracy, error) and not (bench.quick and not MODELS[name].is_there()):
                asked[name] = got = ask(name, QUICK_IMAGES if bench.quick else None)
                _record(bench, accuracy, abs(got.compared.private - got.compared.plain))
                _record(bench, error, got.relative)
        if bench.wants(STORY):
            ran["stories260K"], differ = tell(QUICK_TOKENS if bench.quick else TOKENS)
            bench.record(STORY, differ)
        if bench.wants(PROMPT):
            ran[PROMPT.partition(",")[0]], relative = prompt()
            bench.record(PROMPT, relative)
        for name in RESNETS:
            goal = f"{name}, {ERROR}"
            if bench.wants(goal):
                ran[name], relative = classify(name, 1 if bench.quick else 3)
                bench.record(goal, relative)
        if bench.quick:
            bench.leave_rest()
    finally:
        show(asked, ran)


def _record(bench: Bench, goal: str, value: float) -> None:
    if bench.wants(goal):
        bench.record(goal, value)


def ask(name: str, count: int | None = None) -> Asked:
    """One of `MODELS`, in the clear and on shares."""
    given = MODELS[name]
    file = given.file()
    images, labels = given.asked(count)
    plain = in_the_clear(given, images)
    outcome = run_parties(programs.classify, name=name, file=str(file), shape=list(images.shape))
    seconds = sum(cost.seconds for cost in outcome.costs)
    compared = compare(plain, outcome.arrays["output"], labels, seconds, scores=given.scores)
    return Asked(compared, compared.error / float(np.abs(plain).max()), given.scores, outcome)


def tell(count: int) -> tuple[Ran, int]:
    """What stories260K says after BOS, and how many tokens are not those of the reference."""
    folder = data("llm/stories260K") / "llm" / "stories260K"
    file = folder / "stories260K.bin"
    model = load(file)
    wanted = greedy(model, count)
    outcome = run_parties(programs.story, path=str(file), steps=count)
    said = outcome.arrays["tokens"]
    pieces = read_tokens(folder / "tok512.bin", model.shape.vocabulary)
    differ = sum(a != b for a, b in zip_longest(said.tolist(), wanted))
    expected = (folder / "expected_greedy_200.txt").read_bytes()
    if count == TOKENS and text(said.tolist(), pieces) != expected.rstrip(b"\n"):
        differ = max(differ, 1)
    ending = text(said.tolist(), pieces).decode(errors="replace").split("\n")[0]
    return Ran(f"{count} tokens: “{ending[:60]}...”", f"{differ} differ", outcome, "token"), differ


def prompt(count: int = 16) -> tuple[Ran, float]:
    """The logits after each of some secret tokens, from the ONNX form; the error relative to the largest."""
    model = load(data("llm/stories260K") / "llm" / "stories260K" / "stories260K.bin")
    file = data("onnx/stories260K") / "onnx" / "stories260K" / "model.onnx"
    tokens = [BOS, *greedy(model, count - 1)]
    outcome = run_parties(programs.prompt, file=str(file), tokens=tokens, classes=model.shape.vocabulary)
    wanted = run_onnx(file, np.array([tokens]))[0]
    relative = float(np.abs(outcome.arrays["output"] - wanted).max() / np.abs(wanted).max())
    return Ran(f"{count} secret tokens at once", f"{relative:.1e}", outcome, "prompt"), relative


def classify(name: str, rounds: int) -> tuple[Ran, float]:
    """A ResNet on one image, and its error relative to the largest output."""
    outcome = run_parties(programs.resnet, DEEP, name=name, rounds=rounds)
    wanted = plain_resnet(name)
    relative = float(np.abs(outcome.arrays["output"] - wanted).max() / np.abs(wanted).max())
    return Ran("one image of 224 x 224", f"{relative:.1e}", outcome, "image"), relative


def plain_resnet(name: str) -> NDArray[np.float64]:
    model = with_random_weights(RESNETS[name]).double()
    with torch.no_grad():
        result: NDArray[np.float64] = model(torch.from_numpy(random_image()).double()).numpy()
    return result


# What is shown


def show(asked: dict[str, Asked], ran: dict[str, Ran]) -> None:
    console = Console(highlight=False, width=130, soft_wrap=True)
    if asked:
        table = _table("model", "images", "plain %", "private %", "agree %", "KL", "error / largest", *_COSTS)
        for name, row in asked.items():
            got = row.compared
            table.add_row(
                name,
                f"{got.images:,}",
                *(f"{value:.2f}" for value in (got.plain, got.private, got.agree)),
                *(f"{got.kl:.1e}", f"{row.relative:.1e}"),
                *_costs(row.outcome, "batch", got.images),
            )
        console.print(table)
    if ran:
        table = _table("model", "what", "error", *_COSTS)
        for name, each in ran.items():
            table.add_row(name, each.what, each.error, *_costs(each.outcome, each.unit, None))
        console.print(table)


_COSTS = ("s each", "rounds", "MB each: online", "dealt", "peak MiB")


def _costs(outcome: Outcome, run: str, count: int | None) -> tuple[str, ...]:
    """Of one image or token: a median run's, or a share of all runs."""
    if count is None:
        cost = outcome.median(run, skip=min(1, len(outcome.costs) - 1))
        seconds, online, dealt, rounds = cost.seconds, cost.online, cost.dealt, cost.rounds
    else:
        seconds = sum(cost.seconds for cost in outcome.costs) / count
        online, dealt = (
            sum(sizes) / count for sizes in zip(*((c.online, c.dealt) for c in outcome.costs), strict=True)
        )
        rounds = outcome.costs[-1].rounds
    return f"{seconds:.3g}", f"{rounds}", f"{online / 1e6:.2f}", f"{dealt / 1e6:.2f}", f"{outcome.peak_mib:,.0f}"


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i and column != "what" else "left")
    return table
