"""What every error of ours carries."""

import copy
import pickle
import traceback

from strongroom.errors import StrongroomError, UsageError, from_wire


def test_a_traceback_shows_the_hint_once():
    error = UsageError("got a, wanted b", hint="say b")
    assert "".join(traceback.format_exception_only(error)).splitlines() == [
        "strongroom.errors.UsageError: got a, wanted b",
        "hint: say b",
    ]
    error.add_note("more")
    error.hint = "say c"
    assert sorted(error.__notes__) == ["hint: say c", "more"]
    error.hint = None
    assert error.__notes__ == ["more"]
    assert "hint" not in "".join(traceback.format_exception_only(StrongroomError("got a")))


def test_a_copy_of_an_error_keeps_its_hint():
    error = UsageError("got a, wanted b", hint="say b")
    for made in (pickle.loads(pickle.dumps(error)), copy.copy(error), from_wire(error.to_wire())):  # noqa: S301  # ours
        assert type(made) is UsageError
        assert (made.message, made.hint, made.__notes__) == ("got a, wanted b", "say b", ["hint: say b"])
