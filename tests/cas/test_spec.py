"""What docs/spec/cas.md says is enough to read what a CAS signs, seals and hashes."""

from __future__ import annotations

import ast
import base64
import hashlib
import hmac
import json
import re
import sqlite3
from pathlib import Path

from strongroom.cas.api import bodies
from strongroom.cas.api import log as log_api
from strongroom.cas.log import audit as log_audit
from strongroom.cas.log import head as log_head
from strongroom.cas.log import note as log_note
from strongroom.cas.policy import program as given
from strongroom.cas.policy import table as document
from strongroom.cas.policy import version as policy
from strongroom.cas.service import app
from strongroom.crypto import derive, open_box
from tests.cas.world import cas_in, world_in

SPEC = (Path(__file__).parents[2] / "docs" / "spec" / "cas.md").read_text()


def test_the_signature_of_a_policy(world):
    answer = world.client._http.get(f"/v1/policies/{world.name}")
    signature = policy.sign_policy(str(answer["text"]), world.owner)
    world.owner.public.verify(signature, b"strongroom/policy/v1\0" + world.text().encode())


def tree_hash(leaves):
    """MTH of RFC 9162, section 2.1.1, over leaf hashes."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256().digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\1" + tree_hash(leaves[:k]) + tree_hash(leaves[k:])).digest()


def leaf(entry):
    names = ("number", "time", "event", "policy", "detail", "previous", "salt")
    fields = ["strongroom/cas/log/v2", *(entry[name] for name in names)]
    return hashlib.sha256(b"\0" + json.dumps(fields, ensure_ascii=True, separators=(",", ":")).encode()).digest()


def test_the_tree_of_the_log_and_the_boxes_of_the_rows(tmp_path):
    with cas_in(tmp_path) as cas, world_in(cas) as world:
        log = world.client.log()
        checkpoint = world.client.log_head()[0].text
        name, text = world.name, world.text()
    leaves = [leaf(entry) for entry in log]
    assert checkpoint.split("\n")[1:3] == [str(len(log)), base64.b64encode(tree_hash(leaves)).decode()]
    with sqlite3.connect(tmp_path / "cas" / "cas.sqlite") as db:
        (head,) = db.execute("SELECT box FROM head").fetchone()
        (row, entry) = db.execute("SELECT box, entry FROM policies").fetchone()
        rows = [
            ([table, *key], number, box)
            for table in ("policies", "secrets", "anchors", "namespaces", "names")
            for *key, number, box in db.execute(f"SELECT * FROM {table}")  # noqa: S608
        ]
    db.close()
    key = derive((tmp_path / "cas" / "master.key").read_bytes(), "strongroom/cas/rows/v2")
    sum_key = derive(key, "strongroom/cas/rows-sum/v1")
    total, opened = 0, []
    for at, number, box in rows:
        aad = json.dumps([*at, number], separators=(",", ":")).encode()
        opened.append(open_box(key, box, aad))
        total += int.from_bytes(hmac.digest(sum_key, aad + box[:24], "sha256"), "big")
    assert len(rows) == 7
    assert opened[-2:] == [b"", world.owner.public.fingerprint.encode()]  # `last`, `owner`
    peaks = [tree_hash(leaves[:4]).hex()]
    assert json.loads(open_box(key, head, b'["head",1]')) == [4, peaks, f"{total % 2**256:064x}"]
    assert json.loads(open_box(key, row, f'["policies","{name}",1,{entry}]'.encode()))["text"] == text


def test_the_vector_of_an_audit():
    (vector,) = (text for text in re.findall(r"```json\n(.*?)```", SPEC, re.DOTALL) if "strongroom-audit-1" in text)
    value = json.loads(vector)
    (named,) = re.findall(r"has the leaf hash `([0-9a-f]{64})`", SPEC)
    (vkey,) = re.findall(r"the witness is `(\S+)`", SPEC)
    assert leaf(value["entries"][0]).hex() == named
    read = log_audit.Audit.parse(vector.encode())
    witness = log_note.WitnessKey.parse(vkey)
    report = log_audit.verify_audit(read, cas_root=value["cas_root"], witnesses=[witness], quorum=1)
    assert (report.head.size, report.witnessed, dict(report.policies)) == (3, 2, {"acme/train": 2})
    assert json.loads(read.to_bytes()) == value


def test_every_event_of_the_log_is_in_the_specification():
    (listed,) = re.findall(r"`event` \((.*?)\)", SPEC, re.DOTALL)
    written = set()
    for path in Path(app.__file__).parents[1].rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call):
                name = getattr(call.func, "attr", getattr(call.func, "id", ""))
                said = [word.value for word in call.keywords if word.arg == "event"]
                said += call.args if name in ("record", "_put", "_tell", "_write") else []
                written |= {one.value for one in said if isinstance(one, ast.Constant) and isinstance(one.value, str)}
    assert set(re.findall(r"`([a-z-]+)`", listed)) == written


def test_the_limits_of_the_log_are_in_the_specification():
    for number in (log_api.PAGE, log_audit.MAX_AUDIT):
        assert f"{number:,}" in SPEC
    assert f"with proofs {log_api.PROVED_PAGE}" in SPEC
    assert log_head.HEAD_HEADER in SPEC


def test_every_status_is_in_the_specification():
    rows = re.findall(r"^\| (\d{3}(?:, \d{3})*) \|", SPEC, re.M)
    shown = {status for row in rows for status in row.split(", ")}
    assert shown == {*app.described()["components"]["responses"], "405"}


def test_every_path_limit_and_reserved_variable_is_in_the_specification():
    rows = re.findall(r"^\| (GET|PUT|POST|DELETE) `([^?`]+)", SPEC.replace("…", "/v1/policies/NS/NAME"), re.M)
    shown = {(method, re.sub(r"\b[A-Z]+\b", "{}", path)) for method, path in rows}
    paths = app.described()["paths"].items()
    served = {(method.upper(), re.sub(r"{\w+}", "{}", path)) for path, methods in paths for method in methods}
    assert not served ^ shown
    assert f"{bodies.MAX_BODY:,}" in SPEC
    assert f"{document.MAX_DOCUMENT:,}" in SPEC
    for name in re.findall(r"[A-Z_]{2,}", given.RESERVED.pattern):
        assert f"`{name}" in SPEC
