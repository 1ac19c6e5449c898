"""What a person is told of a run: what it sealed, and errors with digests that can be read."""

import pytest

from strongroom.cli import output
from strongroom.cli.run.events import describe_event

ONE, OTHER = "0123456789abcdef" * 4, "fedcba9876543210" * 6


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ({"count": 1800, "written": 1, "removed": 0}, "sealed 1 file; 1799 are as before"),
        ({"count": 2, "written": 2, "removed": 3}, "sealed 2 files, removed 3"),
        ({"count": 1, "written": 0, "removed": 0}, "sealed 0 files; 1 is as before"),
        ({}, "sealed 1 file"),
    ],
)
def test_what_was_there_before_is_not_counted_as_sealed(told, text):
    assert describe_event("sealed", {"vault": "out", "files": ["a"], **told}) == f"vault out: {text}"


def test_digests_in_errors_are_shortened_unless_they_look_alike_then():
    text = f"measurement: got {ONE}, wanted sha256:{OTHER}"
    assert output.shortened(text) == "measurement: got 0123456789abcdef..., wanted sha256:fedcba9876543210..."
    alike = f"got {ONE}, wanted {ONE[:-1]}0"
    assert output.shortened(alike) == alike
    assert output.shortened("vault 0123456789abcdef0123: no digest") == "vault 0123456789abcdef0123: no digest"
