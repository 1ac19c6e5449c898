"""Traces: every form is read as its page says, and whatever else arrives is refused by our own errors."""

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from strongroom.errors import FormatError, UsageError
from strongroom.mirror.spot import Trace, parse, parse_aws, parse_csv, read, traces

fuzz = settings(max_examples=200, deadline=None)


def history(*entries, **more):
    """What `aws ec2 describe-spot-price-history` prints, of (time, price) or (time, price, zone)."""
    rows = [
        {
            "AvailabilityZone": zone[0] if zone else "us-west-1a",
            "InstanceType": "m1.xlarge",
            "ProductDescription": "Linux/UNIX",
            "SpotPrice": price,
            "Timestamp": time,
        }
        for time, price, *zone in entries
    ]
    return json.dumps({"SpotPriceHistory": rows} | more)


HISTORY = (("2014-01-06T07:10:55.000Z", "0.087000"), ("2014-01-06T05:10:55+00:00", "0.08"), ("2014-01-06T06:10:55Z", 1))


def shape(trace):
    return trace.times.tolist(), trace.prices.tolist(), trace.available.tolist()


def test_rows_without_times_hold_an_interval_each():
    assert shape(parse_csv("0.1\n0.2\n")) == ([0, 60, 120], [0.1, 0.2], [True, True])
    assert shape(parse_csv("0.1,1\r\n0.2,2\r\n")) == ([0, 60, 120], [0.1, 0.2], [True, True])
    assert shape(parse_csv("0.1\t7\n0.2\t8\n\n", interval=300)) == ([0, 300, 600], [0.1, 0.2], [True, True])
    assert shape(parse_csv("price,what\n0.1,x\n0.2,y")) == ([0, 60, 120], [0.1, 0.2], [True, True])


def test_rows_with_times_hold_until_the_next():
    assert shape(parse_csv("time,price\n100,0.1\n130,0.2\n200,9")) == ([0, 30, 100], [0.1, 0.2], [True, True])
    dated = "SpotPrice,Timestamp\n0.1,2020-01-01T00:00:00Z\n0.2,2020-01-01 01:00:00\n0,2020-01-01T03:00:00+01:00\n"
    assert shape(parse_csv(dated)) == ([0, 3600, 7200], [0.1, 0.2], [True, True])


def test_availability():
    assert shape(parse_csv("time,available\n0,1\n10,0\n30,1\n", price=2.5)) == ([0, 10, 30], [2.5, 2.5], [True, False])
    both = parse_csv("available,price\n1,0.1\n0,0.1\n1,0.3\n")
    assert both.up(0.2).tolist() == [True, False, False]
    assert both.up(None).tolist() == [True, False, True]


def test_aws_entries_come_in_any_order():
    assert shape(parse(history(*HISTORY, NextToken="x"))) == ([0, 3600, 7200], [0.08, 1.0], [True, True])
    assert shape(parse(json.dumps(json.loads(history(*HISTORY))["SpotPriceHistory"]))) == shape(
        parse(history(*HISTORY))
    )


def test_aws_with_several_zones_wants_a_choice():
    text = history(*((*row, zone) for zone in ("us-west-1b", "us-west-1a") for row in HISTORY))
    with pytest.raises(FormatError, match="AvailabilityZone: 2 of them, wanted one") as caught:
        parse(text)
    assert caught.value.hint == "choose a zone: us-west-1a, us-west-1b"
    assert parse(text, zone="us-west-1b", instance="m1.xlarge").prices.tolist() == [0.08, 1.0]
    with pytest.raises(FormatError, match="no entry has us-east-1a"):
        parse(text, zone="us-east-1a")
    with pytest.raises(UsageError, match="a CSV trace has none"):
        parse("1\n2\n", zone="us-west-1a")


def test_the_same_entry_twice_is_one_and_two_prices_at_one_time_are_refused():
    assert len(parse_aws(history(*HISTORY, HISTORY[0])).prices) == 2
    with pytest.raises(FormatError, match=r"SpotPriceHistory\[3\]: a second price at 2014-01-06T06:10:55Z, wanted one"):
        parse_aws(history(*HISTORY, ("2014-01-06T06:10:55Z", "2")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ("\n\n", "no rows"),
        ("price\n", "no rows"),
        ("nan\n", "line 1: columns nan, wanted price or available"),
        ("1\nnan\n", "line 2: price: nan, wanted a number"),
        ("1\ninf\n", "line 2: price: inf, wanted a number"),
        ("1\n1e999\n", "line 2: price: 1e999, wanted a number"),
        ("1\n1_0\n", "line 2: price: 1_0, wanted a number"),
        ("1\n\u0661\n", "line 2: price: \u0661, wanted a number"),
        ("1\n\n2\n", "line 2: price: nothing, wanted a number"),
        ("1\n-0.1\n", "line 2: price: -0.1, wanted 0 to 1e[+]06 USD"),
        ("1\n1e7\n", "line 2: price: 1e7, wanted 0 to"),
        ("1\n1,2\n", "line 2: 2 columns, wanted 1"),
        ("1,1\n1,3\n", "line 2: 3 in column 2, wanted the row's number"),
        ("1,2,3\n", "line 1: 3 columns and no names"),
        ("time,prize\n0,1\n", "line 1: columns time,prize, wanted price or available"),
        ("price,price\n1,1\n", "each once"),
        ("time,price\n0,1\n", "rows with times: 1, wanted at least two"),
        ("time,price\n0,1\n5,1\n5,2\n", "line 4: not later than the one before"),
        ("time,price\n9,1\n5,1\n", "line 3: not later than the one before"),
        ("time,price\n0,1\n1e300,1\n", "line 3: time: 1e300, wanted seconds"),
        ("time,price\n0,1\n2020-13-01T00:00:00,1\n", "line 3: time: 2020-13-01T00:00:00, wanted seconds or a time as"),
        ("time,available\n0,1\n5,2\n", "line 3: available: 2, wanted 0 or 1"),
        ("{}", "no list SpotPriceHistory"),
        ("[]", "rows with times: 0, wanted at least two"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('[{"SpotPrice": ' + "9" * 5000 + "}]", "not JSON"),
        ("[1]", r"SpotPriceHistory\[0\]: 1, wanted an object"),
        ('[{"Timestamp": 5, "SpotPrice": true}]', "SpotPrice: True, wanted a number"),
        ('[{"Timestamp": NaN, "SpotPrice": 1}]', "Timestamp: nan, wanted a number"),
        (history(("yesterday", "1")), "Timestamp: yesterday, wanted a number"),
        (history(("2014-01-06T07:10:55Z", "-1")), "SpotPrice: -1, wanted 0 to"),
        (history(("2014-01-06T07:10:55Z", "1")), "rows with times: 1, wanted at least two"),
    ],
)
def test_what_is_no_trace_is_refused(text, message):
    with pytest.raises(FormatError, match=message):
        parse(text)


def test_too_long_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(traces, "MAX_ROWS", 3)
    assert len(parse("1\n" * 3).prices) == 3
    with pytest.raises(FormatError, match="more than 3 rows"):
        parse("1\n" * 20)
    monkeypatch.setattr(traces, "MAX_BYTES", 10)
    path = tmp_path / "long.csv"
    path.write_bytes(b"1\n" * 10)
    for refused in (lambda: parse("1" * 11), lambda: parse("[" + " " * 10), lambda: read(path)):
        with pytest.raises(FormatError, match="wanted at most that"):
            refused()


def test_a_file(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xef\xbb\xbf0.1\r\n0.2\r\n")
    assert read(path, interval=1).times.tolist() == [0, 1, 2]
    path.write_bytes(b"0.1\n\xff\n")
    with pytest.raises(FormatError, match="byte 4 is not UTF-8"):
        read(path)


@pytest.mark.parametrize(("name", "value"), [("interval", 0), ("interval", float("nan")), ("price", -1)])
def test_arguments_that_make_no_sense(name, value):
    with pytest.raises(UsageError, match=name):
        parse("1\n", **{name: value})


def test_a_trace_keeps_no_reference_and_cannot_be_changed():
    prices = np.array([1.0])
    trace = Trace(np.array([0.0, 1.0]), prices, np.array([True]))
    prices[0] = 5
    assert trace.prices[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        trace.prices[0] = 5
    with pytest.raises(FormatError, match="a price that is none"):
        Trace(np.array([0.0, 1.0]), np.array([np.nan]), np.array([True]))
    with pytest.raises(FormatError, match="times that do not rise from 0"):
        Trace(np.array([0.0, np.nan]), np.array([1.0]), np.array([True]))


def test_since_cuts_the_row_it_falls_in():
    trace = parse_csv("1\n2\n3\n")
    assert shape(trace.since(90)) == ([0, 30, 90], [2, 3], [True, True])
    assert shape(trace.since(60)) == ([0, 60, 120], [2, 3], [True, True])
    for start in (-1, 180, float("nan")):
        with pytest.raises(UsageError, match="start"):
            trace.since(start)


def test_bids_cut_the_time_and_end_at_the_highest_price():
    trace = parse_csv("time,price\n0,5\n10,1\n40,2\n50,1\n60,0\n")
    assert trace.bids(1) == [5]
    assert trace.bids(6) == [1, 2, 5]
    with pytest.raises(UsageError, match="bids"):
        trace.bids(0)


def parses_or_raises(text):
    try:
        trace = parse(text)
    except FormatError as error:
        assert error.message.isprintable()
        assert len(error.message) < 400
    else:
        assert (np.diff(trace.times) > 0).all() and trace.times[0] == 0
        assert np.isfinite(trace.prices).all() and (trace.prices >= 0).all()
        assert 0 <= trace.share(None) <= 1


cells = st.one_of(
    st.floats(0, 100).map(str), st.integers(-2, 100).map(str), st.text(max_size=5), st.sampled_from(["nan", "1e9", ""]),
    st.datetimes().map(str), st.sampled_from(["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"]),
)  # fmt: skip


@fuzz
@given(st.text())
@example("\ud800")
@example("\0,\0")
@example('"time","price"\n"1","2"')
@example("," * 100_000)
def test_any_text(text):
    parses_or_raises(text)


@fuzz
@given(
    st.sampled_from(["", "time,price\n", "price\n", "time,available\n", "time,available,price\n"]),
    st.lists(st.lists(cells, min_size=1, max_size=3).map(",".join), max_size=6),
)
def test_any_rows(header, rows):
    parses_or_raises(header + "\n".join(rows))


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | cells, lambda x: st.lists(x, max_size=2), max_leaves=3
)


@fuzz
@given(
    st.lists(
        st.fixed_dictionaries({}, optional={"Timestamp": values, "SpotPrice": values, "AvailabilityZone": values}),
        max_size=4,
    )
)
def test_any_history(entries):
    parses_or_raises(json.dumps({"SpotPriceHistory": entries}))
