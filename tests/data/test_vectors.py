"""The vectors of data sets: judged alike by the package and by a reader of its own, written from the specification."""

import ast
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from strongroom.data import SealedDataset
from strongroom.errors import FormatError
from tests.data import world
from tests.vectors import dataset_reader
from tests.vectors.dataset.generate import FOLDER, make

VECTORS = json.loads((FOLDER / "index.json").read_text())
TYPES = {"U8": "|u1", "I64": "<i8", "F32": "<f4"}
every = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])


@every
def test_the_package(vector):
    file = world.sealed((FOLDER / f"{vector['name']}.content").read_bytes())
    if "refused" in vector:
        with pytest.raises(FormatError):
            SealedDataset(file)
        return
    with SealedDataset(file) as dataset:
        assert list(dataset.fields) == [*vector["values"]]
        arrays = dataset.__getitems__(range(len(dataset))).arrays
        for array, dtype, (kind, shape, raw) in zip(arrays, dataset.dtypes, vector["values"].values(), strict=True):
            assert array.dtype == dtype == np.dtype(TYPES[kind])
            assert list(array.shape) == shape
            assert array.astype(TYPES[kind]).tobytes().hex() == raw


@every
def test_a_second_reader(vector):
    content = (FOLDER / f"{vector['name']}.content").read_bytes()
    if "refused" in vector:
        with pytest.raises(dataset_reader.BadError):
            dataset_reader.read(content)
        return
    found = dataset_reader.read(content)
    assert {name: [kind, shape, raw.hex()] for name, (kind, shape, raw) in found.items()} == vector["values"]


def test_the_second_reader_is_independent():
    imports = set()
    for node in ast.walk(ast.parse(Path(dataset_reader.__file__).read_text())):
        if isinstance(node, ast.Import):
            imports |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imports.add(node.module)
    assert imports <= sys.stdlib_module_names


def test_the_generator_makes_them_again():
    contents, index = make()
    assert index == VECTORS
    for name, data in contents.items():
        assert (FOLDER / f"{name}.content").read_bytes() == data
    assert {path.stem for path in FOLDER.glob("*.content")} == set(contents)
