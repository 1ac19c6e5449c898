"""The tutorial's commands run as written, as far as they need no enclave: those that do are in `test_readme.py`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text()


def commands(number: int) -> list[str]:
    """Those of a section; one goes on over the next lines until its quotes are closed."""
    section = re.split(r"^## ", TEXT, flags=re.MULTILINE)[number]
    found: list[str] = []
    for block in re.findall(r"^```console\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(line[2:])
            elif found and found[-1].count('"') % 2:
                found[-1] += f"\n{line}"
    return found


def test_one_bit_is_found_by_the_tutorials_own_commands(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("onnx")
    script = re.search(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert script is not None
    (tmp_path / "train.py").write_text(script[1])
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "STRONGROOM_HOME": str(tmp_path / "home"),
    }
    said = {}
    for command in (*commands(1), *commands(2), *commands(5)):
        done = subprocess.run(
            ["/bin/sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        refused = command == "strongroom unseal flowers.vault check"
        assert done.returncode == (23 if refused else 0), f"{command}\n{done.stdout}{done.stderr}"
        said[command] = done.stdout + done.stderr
    assert "right: 98.7% of 150" in said["python train.py flowers out"]
    error = said["strongroom unseal flowers.vault check"].splitlines()[0]
    assert re.sub(r"[0-9a-f]{32}", "59a27ea7...", error) in TEXT.splitlines()
    assert not (tmp_path / "check").exists()
    assert sorted(path.name for path in tmp_path.glob("*.vault")) == ["flowers.vault"]
