"""`strongroom mpc cost` says what a model or a program costs, and asks nobody for anything."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from strongroom.cli.main import main
from strongroom.errors import UsageError

PROGRAM = """
import sys
from torch import nn
from strongroom import mpc
import beside

def missing():
    raise FileNotFoundError("nobody has it")

x = mpc.share(missing, source=0, shape=(beside.COUNT, 4))
model = mpc.own(missing, source=1, like=nn.Linear(4, 2))
y = model(x).relu()
print(mpc.reveal(y, to=0), sys.argv)
assert not beside.SEEN
beside.SEEN.append(1)
"""


@pytest.fixture
def program(tmp_path):
    (tmp_path / "beside.py").write_text("COUNT = 3\nSEEN = []\n")
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture
def model(tmp_path):
    rng = np.random.default_rng(1)
    weights = [("w", (4, 8)), ("v", (8, 2))]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
            helper.make_node("Relu", ["h"], ["r"], name="cut"),
            helper.make_node("MatMul", ["r", "v"], ["y"], name="second"),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(rng.random(shape, np.float32), name) for name, shape in weights],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def found(capsys, *words):
    assert main(["mpc", "cost", "--json", *map(str, words)]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_model_by_its_nodes(model, capsys):
    assert main(["mpc", "cost", "--shape", "5,4", "--network", "site,10,100", str(model)]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[-4:] == ["loopback", "LAN", "WAN", "site"]
    assert any("first (MatMul)" in row for row in rows) and any("cut (Relu)" in row for row in rows)
    cost = found(capsys, "--shape", "5,4", model)
    assert cost["total"]["compared"] == 5 * 8
    assert cost["total"]["multiplied"] == [5 * 4 * 8 + 5 * 8 * 2] * 3
    secret = found(capsys, "--shape", "5,4", "--weights", "share", model)
    assert secret["total"]["sent"][1] > cost["total"]["sent"][1]
    narrow = found(capsys, "--shape", "5,4", "--settings", "bound=5", model)
    assert narrow["total"]["sent"][0] < cost["total"]["sent"][0]


def test_a_program_by_its_lines_without_what_it_reads_or_prints(program, capsys):
    assert main(["mpc", "cost", str(program), "more"]) == 0
    out = capsys.readouterr().out
    lines = [number for number, line in enumerate(PROGRAM.splitlines(), 1) if "model(x)" in line or "reveal" in line]
    assert all(f"{program}:{number}" in out for number in lines)
    assert "Withheld" not in out and "tensor" not in out
    assert found(capsys, program)["total"]["compared"] == 3 * 2


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "file: none was given"),
        (["--shape", "1,2", "PROGRAM"], "--shape: is for a model"),
        (["MODEL"], "--shape: was not given"),
        (["--shape", "1,x", "MODEL"], "--shape: got '1,x', wanted sizes"),
        (["--network", "site,1", "--shape", "1,4", "MODEL"], "--network: got 'site,1', wanted a name"),
        (["--shape", "1,4", "MODEL", "more"], "arguments: got 'more', wanted none"),
        (["none.py"], "program: none.py is no file"),
    ],
)
def test_wrong_words_are_refused(words, text, program, model, capsys):
    paths = {"PROGRAM": str(program), "MODEL": str(model)}
    assert main(["mpc", "cost", *(paths.get(word, word) for word in words)]) == UsageError.exit_code
    assert text in capsys.readouterr().err.replace("\n", " ")


def test_a_shape_that_does_not_fit_is_said_to_be_it(model, capsys):
    """Of a model's file no line is at fault."""
    assert main(["mpc", "cost", "--shape", "5,3", str(model)]) == UsageError.exit_code
    err = capsys.readouterr().err.replace("\n", " ")
    assert "got shapes (5, 3) and (4, 8)" in err and "does --shape 5,3 fit the model?" in err
    assert "at /" not in err and "runpy" not in err


def test_a_program_that_fails_says_where(tmp_path, capsys):
    path = tmp_path / "fails.py"
    path.write_text("1 / 0\n")
    assert main(["mpc", "cost", str(path)]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    path.write_text("raise SystemExit(3)\n")
    assert main(["mpc", "cost", str(path)]) == UsageError.exit_code
    assert "exited with status 3" in capsys.readouterr().err
