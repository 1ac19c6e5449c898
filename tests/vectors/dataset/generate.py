"""Makes the contents and the index of this folder: ``python -m tests.vectors.dataset.generate``, in the root.

The same bytes come out each time. All is built by hand, so that it can be wrong in ways in which `seal_arrays` makes
nothing wrong. What a content holds, or that it is refused, is what the second reader says.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

from tests.vectors import dataset_reader

FOLDER = Path(__file__).parent
BYTES = bytes(range(0, 240, 10))
SHAPE = [2, 3, 2, 2]


def content(tensors: dict[str, tuple[str, list[int], bytes]], normalise: object = None, **metadata: object) -> bytes:
    """A content with these tensors (type, shape, bytes) one after the other."""
    header: dict[str, object] = {}
    if normalise is not None:
        metadata["strongroom.normalise"] = normalise if isinstance(normalise, str) else json.dumps(normalise)
    if metadata:
        header["__metadata__"] = metadata
    data = b""
    for name, (kind, shape, part) in tensors.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    return struct.pack("<Q", len(text)) + text + data


def contents() -> dict[str, bytes]:
    """By name."""
    image = {"x": ("U8", SHAPE, BYTES)}
    halves = struct.pack("<4H", 0x3F80, 0xC049, 0x7F80, 0x0001)
    floats = struct.pack("<4f", 1.5, -3.0, 1e30, 1e-40)

    def said(mean: object = 0.0, std: object = 1.0, **more: object) -> dict[str, object]:
        return {"x": {"mean": mean, "std": std, **more}}

    made = {
        "plain": content(image),
        "other_metadata": content(image, format="pt", text=7),
        "bytes": content(image, said(0.0, 255.0)),
        "type_only": content(image, said()),
        "mean_rounds": content(image, said(33.3184214, 78.567482)),
        "integers": content(image, said(7, 3)),
        "channels": content(image, said([125.3, 123.0, 113.9], [63.0, 62.1, 66.7])),
        "one_for_all_and_channels": content(image, said(0.5, [1.0, 2.0, 3.0])),
        "labels_beside": content(image | {"_fill1": ("U8", [3], bytes(3)), "y": ("I64", [2], bytes(16))}, said(0, 255)),
        "signed": content({"x": ("I16", [4], struct.pack("<4h", -32768, -1, 0, 32767))}, said(-1.0, 3.0)),
        "bfloat16": content({"x": ("BF16", [4], halves)}),
        "bfloat16_normalised": content({"x": ("BF16", [4], halves[:4] + halves[6:] + halves[:2])}, said(1.0, 3.0)),
        "float16": content({"x": ("F16", [2, 1], struct.pack("<2e", 0.1, -2.0))}, said([0.1], [7.0])),
        "float32": content({"x": ("F32", [4], floats)}, said(1.0, 1e-3)),
    }
    refused = {
        "type_too_wide": content({"x": ("I32", [2], bytes(8))}, said()),
        "name_unknown": content(image, {"y": {"mean": 0.0, "std": 1.0}}),
        "name_of_a_fill": content(image | {"_fill1": ("U8", [2], bytes(2))}, {"_fill1": {"mean": 0.0, "std": 1.0}}),
        "name_twice": content(image, '{"x": {"mean": 0, "std": 1}, "x": {"mean": 0, "std": 1}}'),
        "member_missing": content(image, {"x": {"mean": 0.0}}),
        "member_unknown": content(image, said(max=255)),
        "not_json": content(image, "{"),
        "list": content(image, "[]"),
        "no_text": content(image, **{"strongroom.normalise": {"x": {"mean": 0.0, "std": 1.0}}}),
        "mean_text": content(image, said("0")),
        "mean_true": content(image, said(True)),
        "mean_nan": content(image, said(float("nan"))),
        "mean_overflows": content(image, said(1e39)),
        "mean_huge": content(image, said(10**400)),
        "std_zero": content(image, said(0.0, 0.0)),
        "std_negative": content(image, said(0.0, -1.0)),
        "std_underflows": content(image, said(0.0, 1e-60)),
        "std_of_a_channel_zero": content(image, said(0.0, [1.0, 0.0, 1.0])),
        "channels_two_of_three": content(image, said([1.0, 2.0])),
        "channels_none": content(image, said([])),
        "channels_of_a_single_value": content({"x": ("U8", [2], bytes(2))}, said([1.0])),
        "list_in_list": content(image, said([[1.0], [1.0], [1.0]])),
    }
    return made | refused


def make() -> tuple[dict[str, bytes], list[dict[str, object]]]:
    """The contents, and the index."""
    index: list[dict[str, object]] = []
    for name, data in contents().items():
        try:
            found = dataset_reader.read(data)
            values = {field: [kind, shape, raw.hex()] for field, (kind, shape, raw) in found.items()}
            index.append({"name": name, "values": values})
        except dataset_reader.BadError:
            index.append({"name": name, "refused": True})
    return contents(), index


def main() -> None:
    """Write all of it."""
    made, index = make()
    for name, data in made.items():
        (FOLDER / f"{name}.content").write_bytes(data)
    (FOLDER / "index.json").write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    main()
