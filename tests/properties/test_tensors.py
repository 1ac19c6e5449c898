"""Tensors survive both encodings, and no bytes from a peer raise anything but FormatError."""

import json
from contextlib import suppress

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from strongroom.errors import FormatError
from strongroom.serve.tensors import (
    DATATYPES,
    InferRequest,
    InferResponse,
    parse_request,
    parse_response,
    write_request,
    write_response,
)

unhurried = settings(deadline=None)

names = st.text(min_size=1, max_size=20)
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
arrays = st.sampled_from(list(DATATYPES.values())).flatmap(lambda dtype: hnp.arrays(dtype, shapes))
finite = st.sampled_from(list(DATATYPES.values())).flatmap(
    lambda dtype: hnp.arrays(
        dtype, shapes, elements={"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else None
    )
)


def same(a, b):
    return list(a) == list(b) and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes() for k in a
    )


@unhurried
@given(st.dictionaries(names, arrays, min_size=1, max_size=4), st.booleans(), st.none() | names)
def test_binary_requests_round_trip_to_the_bit(inputs, binary, name):
    message = write_request(InferRequest(inputs, binary=binary, id=name))
    back = parse_request(b"".join(message.pieces), message.header_length)
    assert same(back.inputs, inputs)
    assert (back.binary, back.id) == (binary, name)


@unhurried
@given(st.dictionaries(names, finite, min_size=1, max_size=4), st.dictionaries(names, st.booleans(), max_size=4))
def test_json_requests_round_trip_to_the_bit(inputs, outputs):
    message = write_request(InferRequest(inputs, outputs), binary=False)
    assert message.header_length is None
    back = parse_request(b"".join(message.pieces))
    assert same(back.inputs, inputs)
    assert back.outputs == outputs


@unhurried
@given(st.dictionaries(names, finite, min_size=1, max_size=4), st.data())
def test_responses_round_trip_with_any_mixture(outputs, data):
    binary = {name: data.draw(st.booleans()) for name in outputs}
    message = write_response(InferResponse(outputs, "m", "1", "id"), binary)
    back = parse_response(b"".join(message.pieces), message.header_length)
    assert same(back.outputs, outputs)
    assert (back.model_name, back.model_version, back.id) == ("m", "1", "id")


def refused_or_parsed(parse, body, header):
    with suppress(FormatError):
        parse(body, header)


@unhurried
@given(st.binary(max_size=300), st.none() | st.integers(0, 400))
def test_any_bytes(body, header):
    refused_or_parsed(parse_request, body, header)
    refused_or_parsed(parse_response, body, header)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
odd_tensors = st.fixed_dictionaries(
    {
        "name": st.just("x") | json_values,
        "shape": st.lists(st.integers(-2, 5) | st.integers(), max_size=4) | json_values,
        "datatype": st.sampled_from([*DATATYPES, "BYTES"]) | json_values,
    },
    optional={
        "data": st.lists(st.integers(-2, 300) | st.floats() | st.booleans(), max_size=6) | json_values,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 40) | json_values}),
    },
)


@settings(max_examples=300, deadline=None)
@given(st.lists(odd_tensors, max_size=3), st.binary(max_size=40), st.booleans())
def test_almost_requests(tensors, raw, binary):
    head = json.dumps({"inputs": tensors}).encode()
    refused_or_parsed(parse_request, head + raw, len(head) if binary else None)


@unhurried
@given(st.data())
def test_one_changed_byte(data):
    message = write_request(InferRequest({"x": np.arange(6, dtype=np.int16).reshape(2, 3)}, {"y": True}))
    body = bytearray(b"".join(message.pieces))
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    refused_or_parsed(parse_request, bytes(body), message.header_length)
