"""Documents kept parsed: as many as their sizes allow."""

from __future__ import annotations

from strongroom.cas.parsed import Parsed


def test_the_latest_are_kept_as_long_as_their_texts_together_are_small():
    asked = []

    def parse(text):
        asked.append(text)
        return text.upper()

    parsed = Parsed(parse, size=lambda text, _: len(text), limit=10)
    for text in ("aaaa", "bbbb", "aaaa", "cc", "dddd", "aaaa", "bbbb"):
        assert parsed(text) == text.upper()
    assert asked == ["aaaa", "bbbb", "cc", "dddd", "bbbb"]


def test_one_that_is_too_large_is_parsed_and_not_kept():
    parsed = Parsed(str.upper, size=lambda text, _: len(text), limit=3)
    assert parsed("large") == parsed("large") == "LARGE"
    assert parsed("abc") == "ABC"
    assert parsed("abc") is parsed("abc")
