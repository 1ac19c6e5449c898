"""What a pipeline is, as a document; and what is none."""

from __future__ import annotations

import dataclasses
import json

import pytest

from strongroom.attest.binding import canonical
from strongroom.cli.serve_part import PartDirectory
from strongroom.errors import FormatError, StrongroomError, UsageError
from strongroom.serve.pipeline.cut import cut
from strongroom.serve.pipeline.document import Pipeline, command, of_command
from tests.serve.pipeline.world import model, pieces, pipeline, plan
from tests.serve.plan.world import network

pytest.importorskip("onnxruntime")


def test_it_is_read_as_it_was_written():
    ours = pipeline()
    assert Pipeline.parse(ours.to_text()) == ours
    assert of_command(command(ours, 2)) == (ours, 2)
    assert of_command(["m.onnx"]) is None
    assert ours.plan == plan().digest and len(ours.digest) == 64


def test_parts_together_hold_the_weights_once():
    assert sum(map(len, pieces(3).models)) < len(model()) + 3 * 4096


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version 2"),
        ({"parts": []}, "every output"),
        ({"plan": "x"}, "64 hexadecimal"),
        ({"front": "../etc"}, "namespace/name"),
        ({"more": 1}, "unknown field"),
        ({"batch": 0}, "batch: got 0"),
        ({"tick": -1}, "tick: got -1"),
        (
            {"batch": 2, "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 64]}], "sizes": []},
            "rows of any number",
        ),
        ({"sizes": []}, "sizes: are not"),
        ({"sizes": [{"at": [[0, 1]], "planned": 1, "power": 1}]}, "sizes: are not"),
        ({"sizes": [{"at": [[0, 0], [0, 0]], "planned": 1, "power": 1}]}, "sizes: are not"),
        ({"sizes": [{"at": [[0]], "planned": 1, "power": 1}]}, "by numbers"),
        ({"sizes": [{"at": [[0, 0]], "planned": 0, "power": 1}]}, "planned: got 0"),
        ({"sizes": [{"at": [[0, 0]], "planned": 1, "power": 9}]}, "power: got 9"),
        ({"times": 0}, "times: got 0"),
        ({"asks": 1}, "asks"),
        ({"takes": ["elsewhere"]}, "nothing before it gives"),
        ({"gives": ["a", "a"]}, "twice"),
    ],
)
def test_what_is_none(change, words):
    wire = json.loads(pipeline().to_text())
    target = wire["parts"][0] if set(change) & {"asks", "takes", "gives"} else wire
    target.update(change)
    with pytest.raises(FormatError, match=words):
        Pipeline.parse(canonical(wire).decode())


def test_text_that_is_none_in_utf_8():
    with pytest.raises(FormatError, match="no text"):
        Pipeline.parse("\ud800")


def test_a_part_s_directory_whose_file_is_none(tmp_path):
    wire = {"format": "strongroom-part", "version": 1, "part": 1, "pipeline": pipeline().to_text()}
    wire |= {"cas": {"url": "https://127.0.0.1:1", "root": "sha256:" + 64 * "a"}, "cas_reference": ""}
    file = tmp_path / "part.json"
    file.write_text(json.dumps(wire))
    assert PartDirectory.read(tmp_path).number == 1
    for change, words in (({"version": True}, "version 1"), ({"pipeline": "\ud800"}, "no text")):
        file.write_text(json.dumps(wire | change))
        with pytest.raises(FormatError, match=words):
            PartDirectory.read(tmp_path)


@pytest.mark.parametrize("words", [["--pipeline"], ["--pipeline", "3", ""], ["--pipeline", "-1", ""]])
def test_a_command_that_names_no_part(words):
    if len(words) == 3:
        words[2] = pipeline().to_text()
    with pytest.raises(FormatError, match="command"):
        of_command(words)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"model": "0" * 64}, "is of model 0"), ({"chain": "0" * 64}, "other units"), ({"units": 1}, "other units")],
)
def test_a_plan_of_something_else(change, words):
    with pytest.raises(UsageError, match=words) as refused:
        cut(model(), dataclasses.replace(plan(), **change))
    assert (refused.value.hint and "strongroom plan" in refused.value.hint) or "again" in str(refused.value.hint)
    with pytest.raises(StrongroomError):
        cut(network(64, 5).SerializeToString(), plan())
