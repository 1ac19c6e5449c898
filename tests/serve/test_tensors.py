"""The protocol's encoding: what each form means, and what each malformed one is refused with."""

import json

import numpy as np
import pytest

from strongroom.errors import FormatError, ServeError
from strongroom.serve.tensors import (
    DATATYPES,
    InferRequest,
    InferResponse,
    TensorInfo,
    check_fits,
    header_length,
    parse_request,
    parse_response,
    write_request,
    write_response,
)


def tensor(**changes):
    entry = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]} | changes
    return {key: value for key, value in entry.items() if value is not ...}


def body(*tensors, raw=b"", **top):
    head = json.dumps({"inputs": list(tensors or [tensor()])} | top).encode()
    return head + raw, len(head) if raw else None


def binary(size, raw, **changes):
    return body(tensor(data=..., parameters={"binary_data_size": size}, **changes), raw=raw)


def parse(parts):
    return parse_request(*parts)


@pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]]])
def test_json_data_may_be_flat_or_nested(data):
    x = parse(body(tensor(shape=[2, 3], datatype="INT16", data=data))).inputs["x"]
    assert x.dtype == np.int16
    assert x.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("shape", "data"), [([], [7]), ([0], []), ([0, 3], []), ([2, 0], [[], []]), ([1, 1, 1], [[[7]]]), ([2, 0, 3], [])]
)
def test_scalars_and_empty_tensors(shape, data):
    x = parse(body(tensor(shape=shape, data=data))).inputs["x"]
    assert x.shape == tuple(shape)


def test_a_binary_tensor_is_a_view_of_the_body():
    raw = np.arange(4, dtype="<f4").tobytes()
    head = json.dumps({"inputs": [tensor(data=..., shape=[4], parameters={"binary_data_size": 16})]}).encode()
    head += b" " * (-len(head) % 16)
    whole = bytearray(head + raw)
    x = parse_request(whole, len(head)).inputs["x"]
    assert np.shares_memory(x, np.frombuffer(whole, np.uint8))
    assert x.tolist() == [0, 1, 2, 3]


def test_what_is_unaligned_is_copied_and_right():
    head = json.dumps({"inputs": [tensor(data=..., datatype="FP64", parameters={"binary_data_size": 16})]}).encode()
    head += b" " * ((1 - len(head)) % 8)
    x = parse_request(head + np.array([1.5, -2.5]).tobytes(), len(head)).inputs["x"]
    assert x.flags.aligned
    assert x.tolist() == [1.5, -2.5]


def test_json_and_binary_tensors_in_one_request():
    first = tensor(name="a", data=..., parameters={"binary_data_size": 8})
    last = tensor(name="c", datatype="UINT8", data=..., parameters={"binary_data_size": 2})
    inputs = parse(body(first, tensor(name="b", data=[5, 6]), last, raw=np.float32([1, 2]).tobytes() + b"\3\4")).inputs
    assert {name: x.tolist() for name, x in inputs.items()} == {"a": [1, 2], "b": [5, 6], "c": [3, 4]}


def test_what_outputs_are_asked_for():
    assert parse(body()).outputs == {}
    assert not parse(body()).binary
    assert parse(body(parameters={"binary_data_output": True})).binary
    mixed = parse(body(outputs=[{"name": "a"}, {"name": "b", "parameters": {"binary_data": True}}], id="7"))
    assert mixed.outputs == {"a": False, "b": True}
    assert mixed.id == "7"


REFUSED = {
    "not_json": ((b"\xff", None), "body: is not JSON"),
    "empty": ((b"", None), "body: is not JSON"),
    "utf16": ((json.dumps({"inputs": [tensor()]}).encode("utf-16"), None), "is not JSON"),
    "nested_too_deep": ((b"[" * 200_000, None), "is not JSON"),
    "nan": ((b'{"inputs": NaN}', None), "NaN is not a JSON number"),
    "duplicate_key": ((b'{"inputs": [], "inputs": []}', None), "a key occurs twice"),
    "not_an_object": ((b"[]", None), "request: got a list, wanted an object"),
    "no_inputs": ((b"{}", None), "request: has no inputs"),
    "empty_inputs": ((b'{"inputs": []}', None), "inputs: got none"),
    "inputs_no_list": ((b'{"inputs": {}}', None), "inputs: got an object, wanted a list"),
    "unknown_field": (body(inpust=1), "request: got an unknown field 'inpust'"),
    "unknown_parameter": (body(parameters={"sequence_id": 1}), "unknown field 'sequence_id'"),
    "many_inputs": (body(*[tensor(name=str(i)) for i in range(1025)]), "1025 items, wanted at most 1024"),
    "same_name_twice": (body(tensor(), tensor()), "input 'x': is given twice"),
    "no_name": (body(tensor(name=...)), "input: has no name"),
    "empty_name": (body(tensor(name="")), "input name: got ''"),
    "name_no_string": (body(tensor(name=3)), "input name: got 3"),
    "long_name": (body(tensor(name="n" * 1025)), "wanted a string of 1 to 1024"),
    "unknown_datatype": (body(tensor(datatype="FP8")), "got datatype 'FP8', wanted one of BOOL"),
    "bytes": (body(tensor(datatype="BYTES")), "got datatype 'BYTES'"),
    "datatype_a_list": (body(tensor(datatype=["FP32"])), "got datatype a list"),
    "shape_no_list": (body(tensor(shape=2)), "shape: got a number, wanted a list"),
    "negative_dimension": (body(tensor(shape=[-1])), "got a dimension -1"),
    "fractional_dimension": (body(tensor(shape=[2.0])), "got a dimension 2.0"),
    "boolean_dimension": (body(tensor(shape=[True])), "got a dimension True"),
    "huge_dimension": (body(tensor(shape=[10**30])), "got a dimension a huge integer"),
    "shape_overflows_64_bits": (body(tensor(shape=[2**33, 2**33, 0])), "more than"),
    "rank": (body(tensor(shape=[1] * 33, data=[1])), "33 items, wanted at most 32"),
    "too_few": (body(tensor(data=[1])), "got 1 elements, wanted 2"),
    "too_many": (body(tensor(data=[1, 2, 3])), "got 3 elements, wanted 2"),
    "promised_more_than_memory": (body(tensor(shape=[2**40])), "wanted 1099511627776"),
    "ragged": (body(tensor(shape=[2, 2], data=[[1, 2], [3]])), "nested otherwise than its shape"),
    "mixed_nesting": (body(tensor(shape=[2, 2], data=[[1, 2], 3])), "nested otherwise"),
    "nested_too_much": (body(tensor(data=[[1], [2]])), "got a list, wanted FP32 elements only"),
    "string_data": (body(tensor(data=["1", "2"])), "got a string, wanted FP32"),
    "null_data": (body(tensor(data=[None, 1])), "got null"),
    "booleans_as_numbers": (body(tensor(data=[True, 1])), "got a boolean, wanted FP32"),
    "fraction_as_integer": (body(tensor(datatype="INT8", data=[1.0, 2])), "got a number, wanted INT8"),
    "integer_out_of_range": (body(tensor(datatype="UINT8", data=[256, 0])), "out of UINT8's range"),
    "negative_as_unsigned": (body(tensor(datatype="UINT64", data=[-1, 0])), "out of UINT64's range"),
    "float_out_of_range": (body(tensor(data=[1e39, 0])), "out of FP32's range"),
    "half_out_of_range": (body(tensor(datatype="FP16", data=[65536, 0])), "out of FP16's range"),
    "huge_integer_as_float": (body(tensor(datatype="FP64", data=[10**400, 0])), "out of FP64's range"),
    "numbers_as_booleans": (body(tensor(datatype="BOOL", data=[1, 0])), "got a number, wanted BOOL"),
    "neither_data_nor_size": (body(tensor(data=...)), "got neither data nor binary_data_size"),
    "data_and_size": (body(tensor(parameters={"binary_data_size": 8}), raw=bytes(8)), "binary_data_size with data"),
    "no_header": (body(tensor(data=..., parameters={"binary_data_size": 8})), "with no inference-header"),
    "size_too_small": (binary(7, bytes(7)), "got binary_data_size 7, wanted 8"),
    "size_too_large": (binary(9, bytes(9)), "got binary_data_size 9, wanted 8"),
    "size_a_string": (binary("8", bytes(8)), "got binary_data_size '8'"),
    "size_a_boolean": (binary(True, bytes(1), shape=[1], datatype="INT8"), "got binary_data_size True"),
    "cut_short": (binary(8, bytes(7)), "7 bytes left in the body, wanted 8"),
    "trailing": (binary(8, bytes(9)), "body: 1 bytes after the last tensor"),
    "huge_and_absent": (binary(4 << 40, b"x", shape=[2**40]), "1 bytes left in the body"),
    "boolean_of_two": (binary(2, b"\1\2", datatype="BOOL"), "a byte of 0 or 1"),
    "header_too_long": ((b"{}", 3), "got 3, wanted at most the body's 2 bytes"),
    "output_twice": (body(outputs=[{"name": "y"}, {"name": "y"}]), "output 'y': is asked for twice"),
    "output_classification": (
        body(outputs=[{"name": "y", "parameters": {"classification": 3}}]),
        "unknown field 'classification'",
    ),
    "binary_data_a_number": (body(outputs=[{"name": "y", "parameters": {"binary_data": 1}}]), "wanted true or false"),
    "id_a_number": (body(id=5), "id: got 5"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    parts, message = REFUSED[name]
    with pytest.raises(FormatError) as caught:
        parse(parts)
    assert message in caught.value.message


def test_too_much_json_is_refused_unread():
    with pytest.raises(FormatError, match="bytes of JSON, wanted at most"):
        parse_request(b" " * ((16 << 20) + 1))
    with pytest.raises(FormatError, match="header-content-length"):
        parse_request(b" " * ((16 << 20) + 2), (16 << 20) + 1)


@pytest.mark.parametrize("value", ["", "-1", "1e3", "0x10", "٣", " 1", "1" * 13])
def test_a_header_length_that_is_no_decimal_number(value):
    with pytest.raises(FormatError, match="decimal number"):
        header_length(value)


def test_header_length():
    assert header_length(None) is None
    assert header_length("120") == 120


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_json_cannot_carry_is_said_not_sent(value):
    answer = InferResponse({"y": np.float32([value])}, "m")
    with pytest.raises(ServeError, match="NaN or infinity") as caught:
        write_response(answer, {"y": False})
    assert "binary_data" in str(caught.value.hint)
    message = write_response(answer, {"y": True})
    back = parse_response(b"".join(message.pieces), message.header_length).outputs["y"]
    assert np.array_equal(back, answer.outputs["y"], equal_nan=True)


def test_an_answer_that_is_large_is_written_as_bytes_alone():
    """As text it takes many times its size, of a service that everybody shares."""
    answer = InferResponse({"y": np.zeros((1 << 20) + 1, np.uint8)}, "m", "1", None)
    with pytest.raises(ServeError, match="1048577 elements, wanted at most 1048576 in JSON"):
        write_response(answer, {"y": False})
    assert write_response(answer, {"y": True}).pieces


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([1j]), np.array([None]), np.zeros(1, "M8[s]")])
def test_arrays_without_a_datatype(array):
    with pytest.raises(ServeError, match="wanted one of BOOL"):
        write_request(InferRequest({"x": array}))


def test_big_endian_and_strided_arrays_are_sent_as_what_they_mean():
    x = np.arange(12, dtype=">i4").reshape(3, 4)[:, ::2]
    message = write_request(InferRequest({"x": x}))
    assert parse_request(b"".join(message.pieces), message.header_length).inputs["x"].tolist() == x.tolist()


def test_binary_tensors_are_aligned_by_padding_the_json():
    message = write_request(InferRequest({"x": np.zeros(3)}))
    assert message.header_length % 64 == 0


def test_a_request_is_sent_from_where_it_lies_and_an_answer_is_a_copy():
    """An answer's arrays are cleared before it is sent."""
    array = np.ones((256, 256), np.float32)
    asked = write_request(InferRequest({"x": array}))
    told = write_response(InferResponse({"x": array}, "m"), {"x": True})
    array.fill(0)
    assert not any(bytes(asked.pieces[1])) and bytes(told.pieces[1]) == np.ones((256, 256), np.float32).tobytes()


def test_tensor_metadata_round_trips_and_is_strict():
    info = TensorInfo("x", "FP32", (-1, 3))
    assert TensorInfo.from_wire(info.to_wire()) == info
    for bad in ({"shape": [-2]}, {"datatype": "BF16"}, {"name": None}, {"extra": 1}):
        with pytest.raises(FormatError):
            TensorInfo.from_wire(info.to_wire() | bad)


def test_what_fits_an_input():
    info = TensorInfo("x", "FP32", (-1, 3))
    check_fits(np.zeros((5, 3), np.float32), info)
    for array, message in (
        (np.zeros((5, 3)), "got datatype FP64, wanted FP32"),
        (np.zeros((5, 4), np.float32), r"got shape \[5, 4\], wanted \[-1, 3\]"),
        (np.zeros(3, np.float32), r"got shape \[3\]"),
    ):
        with pytest.raises(ServeError, match=message):
            check_fits(array, info)


def test_every_datatype_has_its_size():
    sizes = {"BOOL": 1, "FP16": 2, "FP32": 4, "FP64": 8, "INT8": 1, "UINT64": 8}
    assert {name: DATATYPES[name].itemsize for name in sizes} == sizes
