"""A plan as a picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from xml.etree import ElementTree

import pytest

from strongroom.errors import UsageError
from strongroom.serve.plan import Costs, Enclaves
from strongroom.serve.plan.draw import draw, to_svg, write
from tests.serve.plan.test_document import PLAN

COSTS = Costs(
    [10] * 5, [0] * 5, [1, 2, 3, 4, 5], [8] * 6, names=["Conv", "<script>", "a&b", "$x^", "MatMul, Add, Relu"]
)


def test_the_picture_has_every_unit_and_every_cut(tmp_path: Path):
    plan = dataclasses.replace(PLAN, enclaves=(Enclaves(100, 4, name='"<b>'), PLAN.enclaves[1]))
    picture = draw(plan, COSTS, "model <1>")
    tree = ElementTree.fromstring(to_svg(picture))  # noqa: S314  # our own
    words = "\n".join(each.text or "" for each in tree.iter("{http://www.w3.org/2000/svg}text"))
    for wanted in (
        "model <1>",
        "stage 1   units 0 to 1",
        "stage 2   units 2 to 4",
        "1 <script>",
        "4 MatMul, Add, Relu",
        "output, 41 B",
        "cut, 40 B",
    ):
        assert wanted in words
    assert {each.tag.rpartition("}")[2] for each in tree.iter()} == {"svg", "rect", "text", "line", "polygon"}
    write(picture, tmp_path / "plan.svg")
    write(picture, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match=r"\.svg or \.png"):
        write(picture, tmp_path / "plan.gif")
