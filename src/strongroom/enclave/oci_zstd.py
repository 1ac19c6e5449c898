"""Layers that zstd has compressed, read by Python's own library (3.14 and later) or the package that has it for others.

A stream may ask for a window of at most 128 MiB, which is what the format's own tool takes without being told to, and
never gives more bytes at once than it was asked for. Frames follow one another.

Source: RFC 8878, "Zstandard Compression", sections 3.1 and 3.1.1.1.2, for frames and windows.
"""

from __future__ import annotations

import importlib
from typing import Any, BinaryIO, Final

from strongroom.errors import FormatError, MissingDependencyError

_WINDOW_LOG: Final = 27
_PIECE: Final = 1 << 20


class Unzstd:
    """What a zstd file decompresses to.

    Raises:
        MissingDependencyError: this Python has no zstd.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._zstd = file, _library()
        self._engine: Any = None
        self._rest = b""

    def read(self, size: int) -> bytes:
        """The next bytes, empty at the end. Raises FormatError for what is no zstd file, or not a whole one."""
        while True:
            if self._engine is None or self._engine.eof:
                raw = self._rest or self._file.read(_PIECE)
                if not raw:
                    return b""
                options = {self._zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
                self._engine, self._rest = self._zstd.ZstdDecompressor(options=options), b""
            else:
                raw = self._file.read(_PIECE) if self._engine.needs_input else b""
                if not raw and self._engine.needs_input:
                    raise FormatError("layer: its zstd file is cut short")
            try:
                piece: bytes = self._engine.decompress(raw, size)
            except self._zstd.ZstdError as error:
                raise FormatError(f"layer: no zstd file: {str(error)[:100]}") from None
            if self._engine.eof:
                self._rest = self._engine.unused_data
            if piece:
                return piece


def _library() -> Any:
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise MissingDependencyError(
        "layer: is compressed by zstd, which this Python cannot read",
        hint="pip install 'strongroom[zstd]', or convert it: skopeo copy --dest-compress-format gzip",
    )
