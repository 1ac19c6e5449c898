"""Key files."""

import os
import stat

import pytest

from strongroom.errors import FormatError
from strongroom.sealed import create_key, load_key


def test_create_then_load(tmp_path):
    path = tmp_path / "key"
    key = create_key(path)
    assert load_key(path) == key
    assert len(key) == 32
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        create_key(path)
    assert load_key(path) == key


def test_comments_and_line_ends(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(b"# one\r\n\r\nSTRONGROOM-SEALING-KEY-1 " + b"A" * 43 + b"\r\n# two")
    assert load_key(path) == bytes(32)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"# only a comment\n",
        b"STRONGROOM-SEALING-KEY-2 " + b"A" * 43,
        b"STRONGROOM-SEALING-KEY-1 " + b"A" * 42,
        b"STRONGROOM-SEALING-KEY-1 " + b"A" * 43 + b"=",
        b"STRONGROOM-SEALING-KEY-1 " + b"A" * 42 + b"B",  # bits that no byte holds
        b"STRONGROOM-SEALING-KEY-1 " + b"A" * 20 + b" " + b"A" * 23,
        b"STRONGROOM-SEALING-KEY-1 " + b"A" * 43 + b"\nSTRONGROOM-SEALING-KEY-1 " + b"A" * 43,
        b"STRONGROOM-SEALING-KEY-1",
        b"\xff\xfe" * 40,
        b"#" * 5000,
    ],
)
def test_anything_else_is_refused_without_repeating_it(tmp_path, content):
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="key file") as caught:
        load_key(path)
    assert "AAAA" not in str(caught.value)
