"""What the benchmarks of the mirror show: tables, pictures, what Plinius published. The measurements are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.harness import Bench
from benchmarks.mirror import GOALS, published, tables
from benchmarks.mirror.published import Published
from benchmarks.mirror.rivals import ENCRYPTED
from benchmarks.mirror.states import SIZES
from benchmarks.mirror.swaps import EACH, Swaps
from benchmarks.mirror.ways import Row

FIGURE = """\
# Bar heights measured from the drawing.
server\tstep\tmodel_MB\tSSD_total_ms\tPM_total_ms\tspeedup\tSSD_part_ms\tPM_part_ms\tpart_is
sgx-emlPM\tsave\t10\t48\t11\t4.35\t43\t6\tio
emlSGX-PM\tsave\t10\t55\t12\t4.77\t48\t7\tio
emlSGX-PM\trestore\t10\t27\t7\t3.90\t5\t6\tdecrypt
"""


def rows() -> list[Row]:
    made = []
    for size in SIZES:
        for place in tables.PLACES:
            for way in ("Strongroom", "Strongroom, overlapped", ENCRYPTED, "distributed.checkpoint", "its async_save"):
                took = {"total": 12345.6, "access": 12345.6, "cpu": 23456.7, "memory": 1234.5}
                if way in ("Strongroom", ENCRYPTED):
                    took["sealing"] = 0.0
                made.append(Row(place, size, way, 147_392, {**took, "stall": 3.2}, took))
    return made


SWAPS = [Swaps(place, "power", each, 123.4 * each) for place in tables.PLACES for each in EACH]


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STRONGROOM_DATA", raising=False)


class TestTables:
    def test_show_every_part_in_100_columns(self, capsys: pytest.CaptureFixture[str], no_data: None) -> None:
        tables.show(rows(), SWAPS, published.bars())
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= 100
        assert "…" not in out
        headings = [line.split() for line in out.splitlines()]
        for place in tables.PLACES:
            shared = ["cpu", "mem", "MiB"]
            assert ["save,", place, "save", "encrypt", "write", "stall", *shared, "meta", "B"] in headings
            assert ["restore,", place, "restore", "decrypt", "read", *shared] in headings
        assert "Strongroom 12,346 0 12,346 3.2 23,457 1,234 147,392" in [" ".join(words) for words in headings]
        assert "disk, power 123 987 7,898 63,181 505,446" in [" ".join(words) for words in headings]

    def test_show_nothing_of_what_was_not_measured(self, capsys: pytest.CaptureFixture[str]) -> None:
        tables.show([], [], published.bars())
        assert capsys.readouterr().out == ""


class TestPublished:
    def test_totals_without_the_data(self, no_data: None) -> None:
        assert Published(published.MEMORY, "restore", 100, 74) in published.bars()

    def test_the_server_with_sgx_in_parts(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "plinius").mkdir()
        (tmp_path / "plinius" / "published_fig7.tsv").write_text(FIGURE)
        monkeypatch.setenv("STRONGROOM_DATA", str(tmp_path))
        assert published.bars() == [
            Published(published.SSD, "save", 10, 55, sealing=7, access=48),
            Published(published.MEMORY, "save", 10, 12, sealing=5, access=7),
            Published(published.SSD, "restore", 10, 27, sealing=5, access=22),
            Published(published.MEMORY, "restore", 10, 7, sealing=6, access=1),
        ]


class TestPlots:
    @pytest.fixture(autouse=True)
    def needs_matplotlib(self) -> None:
        pytest.importorskip("matplotlib")

    def test_draw_all_that_was_measured(self, tmp_path: Path, no_data: None) -> None:
        from benchmarks.mirror import plots

        bench = Bench(GOALS, quick=False)
        for goal in GOALS:
            bench.compare(goal.name, lambda: 3.0, lambda: 2.9, peer_name="peer", unit="ms", rounds=3)
        drawn = plots.draw(tmp_path, rows(), SWAPS, bench.results(), published.bars())
        names = ("states", "parts", "stall", "training", "iterations", "swaps")
        assert [path.name for path in drawn] == [f"mirror-{name}.png" for name in names]
        for path in drawn:
            assert path.read_bytes().startswith(b"\x89PNG")

    def test_draw_nothing_of_what_was_left_out(self, tmp_path: Path) -> None:
        from benchmarks.mirror import plots

        bench = Bench(GOALS, quick=False, only=["swaps"])
        assert plots.draw(tmp_path, [], [], bench.results(), published.bars()) == []
        assert not any(tmp_path.iterdir())
