"""Pictures: what the text one shows, that it fits, and that a PNG is one or says what is missing."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.errors import MissingDependencyError, UsageError
from strongroom.mirror.spot import Job, Saving, parse_csv, plot, simulate

# 30 minutes, two of them too dear.
TRACE = parse_csv("1\n" * 10 + "3\n" + "1\n" * 10 + "30\n" + "1\n" * 8)


def ways(trace=TRACE, bid=2.0, steps=10):
    job = Job(steps, 60)
    return {"mirror": simulate(trace, bid, job, Saving()), "without": simulate(trace, bid, job)}


def test_text():
    """By hand: 30 columns of a minute, tenths as in the middle of each; a log scale, since 30 is far from 1."""
    assert plot.text(TRACE, ways(steps=25), width=44, height=4).splitlines() == [
        "             USD/h (log): o median, : range",
        "         30 |                     o",
        "            |",
        "      bid 2 |----------o-------------------",
        "          1 |oooooooooo oooooooooo oooooooo",
        "       runs |########## ########## #####",
        "      stops |          1          1",
        "     mirror |00111223334445556677788899*",
        "    without |001112233300011122333000111223",
        "            +------------------------------",
        "             0 minutes           30 minutes",
        "runs: # with an instance, : . part of it; stops: interruptions, + from ten;",
        "both of the first row below them. rows: tenths of the job done, * the end",
    ]


@given(
    st.lists(st.sampled_from([0, 0.07, 0.1, 4.2]), min_size=1, max_size=40),
    st.sampled_from([None, 0.0, 0.1, 1.0, 99.0]),
    st.integers(1, 5000),
    st.integers(40, 120),
    st.integers(3, 20),
)
@settings(max_examples=200, deadline=None)
def test_text_fits_whatever_is_drawn(prices, bid, steps, width, height):
    trace = parse_csv("\n".join(map(str, prices)))
    lines = plot.text(trace, ways(trace, bid, steps), width=width, height=height).splitlines()
    assert all(line.isascii() and line.isprintable() and len(line) <= max(width, 80) for line in lines)
    assert not any(line.endswith(" ") for line in lines)


def test_text_wants_something_to_draw_and_room():
    for arguments in ({"width": 39}, {"height": 2}):
        with pytest.raises(UsageError, match="plot"):
            plot.text(TRACE, ways(), **arguments)
    with pytest.raises(UsageError, match="plot: 0 outcomes"):
        plot.text(TRACE, {})


def test_png_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for call in (plot.check_matplotlib, lambda: plot.png(TRACE, ways())):
        with pytest.raises(MissingDependencyError, match="plot: python package") as caught:
            call()
        assert caught.value.hint == "pip install 'strongroom[plot]'"


@pytest.mark.parametrize("bid", [None, 2.0, 0.5])
def test_png(bid):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    drawn = plot.png(TRACE, ways(bid=bid), title="a trace")
    assert drawn.startswith(b"\x89PNG\r\n\x1a\n")
    assert drawn == plot.png(TRACE, ways(bid=bid), title="a trace")
    with pytest.raises(UsageError, match="no outcome"):
        plot.png(TRACE, {})
