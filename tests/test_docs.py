"""The documents name only what exists: tests, files, links, headings, verbs and exit statuses."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from strongroom.cas.policy.version import parse_policy
from strongroom.cli.main import VERBS
from strongroom.errors import StrongroomError

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_TEST = re.compile(r"\b(tests/[\w./-]+\.py)::(\w+)")
# A path of the repository in backticks. What a reader's own directory holds is never written with these first parts.
_PATH = re.compile(r"`((?:src|tests|docs|examples|scripts|benchmarks)/[\w./-]*)")


def _id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", DOCS, ids=_id)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in _LINK.findall(_FENCE.sub("", page.read_text())):
        if target.startswith(("https://", "mailto:")):
            continue
        name, _, fragment = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        if not linked.exists() or not linked.is_relative_to(ROOT) or (fragment and fragment not in _anchors(linked)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", DOCS, ids=_id)
def test_named_files_and_tests_exist(page: Path) -> None:
    text = page.read_text()
    missing = [path for path in _PATH.findall(text) if not (ROOT / path).exists()]
    missing += [f"{path}::{name}" for path, name in _TEST.findall(text) if name not in _tests(path)]
    assert not missing


def test_every_page_can_be_reached_from_the_index() -> None:
    reached, pending = set[Path](), [ROOT / "docs" / "index.md"]
    while pending:
        page = pending.pop()
        if page not in reached:
            reached.add(page)
            links = (target.partition("#")[0] for target in _LINK.findall(page.read_text()))
            pending += [(page.parent / name).resolve() for name in links if name.endswith(".md") and "://" not in name]
    assert not set(DOCS) - {ROOT / "README.md"} - reached


def test_every_threat_has_an_actor_an_asset_a_place_and_a_test() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text()
    tables = [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    ]
    named = {table[0][0]: {row[0] for row in table[2:]} for table in tables if len(table[0]) == 2}
    threats = [table for table in tables if len(table[0]) != 2]
    assert {tuple(table[0]) for table in threats} == {("actor", "asset", "threat", "enforced in", "tried in")}
    rows = [row for table in threats for row in table[2:]]
    assert len(rows) > 35
    for row in rows:
        assert len(row) == 5 and all(row), row
        actor, assets, _, place, tried = row
        assert actor.partition(" (")[0] in named["actor"], row
        assert set(assets.split(", ")) <= set(named["asset"]), row
        assert "`src/" in place and _TEST.search(tried), row


def test_reference_has_every_verb_and_exit_status() -> None:
    text = (ROOT / "docs" / "reference" / "cli.md").read_text()
    assert [verb for verb in VERBS if f"\n### {verb}\n" not in text] == []
    table = {int(code): word for code, word in re.findall(r"^\| (\d+) \| `([a-z-]+)` \|", text, re.MULTILINE)}
    assert table == {kind.exit_code: kind.code for kind in _errors(StrongroomError)}


def _errors(kind: type[StrongroomError]) -> Iterator[type[StrongroomError]]:
    yield kind
    for child in kind.__subclasses__():
        # Subclasses that other modules or tests make for themselves are not of the tree.
        if child.__module__ == "strongroom.errors":
            yield from _errors(child)


@functools.cache
def _tests(path: str) -> frozenset[str]:
    """The names of the functions in a test file, those of classes too."""
    if not (ROOT / path).is_file():
        return frozenset()
    nodes = ast.walk(ast.parse((ROOT / path).read_text()))
    return frozenset(node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@functools.cache
def _anchors(page: Path) -> frozenset[str]:
    """The fragments that a page's headings give."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return frozenset(re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings)


def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the page on Python, in order, in one directory; but for the mount, which not every machine can make."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "how-to" / "python.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        if "files.mount" not in block:
            exec(compile(block, "docs/how-to/python.md", "exec"), {})  # noqa: S102


def test_the_mirror_s_examples_run_and_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "how-to" / "mirror.md").read_text()
    train, plain = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for after in (0, 60):
        exec(compile(train, "docs/how-to/mirror.md", "exec"), {})  # noqa: S102
        assert f"goes on after step {after}\n" in capsys.readouterr().out
    exec(compile(plain, "docs/how-to/mirror.md", "exec"), {})  # noqa: S102


def test_policy_examples_parse() -> None:
    page = (ROOT / "docs" / "how-to" / "policy.md").read_text()
    text = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[0]
    policy = parse_policy(re.sub(r"sha256:[0-9a-f]+\.\.\.", "sha256:" + "0" * 64, text))
    assert [vault.name for vault in policy.vaults] == ["data", "model"]
    assert [secret.environment for secret in policy.secrets] == ["UPLOAD_TOKEN", "SALT"]
