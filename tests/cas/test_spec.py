"""What docs/spec/cas.md says is enough to read what a CAS signs, seals and hashes."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from pathlib import Path

from strongroom.cas import app, document, policy
from strongroom.crypto import derive, open_box
from tests.cas.world import cas_in, world_in

SPEC = (Path(__file__).parents[2] / "docs" / "spec" / "cas.md").read_text()


def test_the_signature_of_a_policy(world):
    answer = world.client._http.get(f"/v1/policies/{world.name}")
    signature = policy.sign_policy(str(answer["text"]), world.owner)
    world.owner.public.verify(signature, b"strongroom/policy/v1\0" + world.text().encode())


def test_the_hashes_of_the_log_and_the_boxes_of_the_rows(tmp_path):
    with cas_in(tmp_path) as cas, world_in(cas) as world:
        log = world.client.log()
        name, text = world.name, world.text()
    before = bytes(32)
    for number, entry in enumerate(log, start=1):
        fields = [entry[field] for field in ("number", "time", "event", "policy", "detail")]
        line = json.dumps(fields, ensure_ascii=True, separators=(",", ":")).encode()
        before = hashlib.sha256(b"strongroom/cas/log/v1\0" + before + line).digest()
        assert (number, before.hex()) == (entry["number"], entry["hash"])
    with sqlite3.connect(tmp_path / "cas" / "cas.sqlite") as db:
        (head,) = db.execute("SELECT box FROM head").fetchone()
        (row,) = db.execute("SELECT box FROM policies").fetchone()
    db.close()
    key = derive((tmp_path / "cas" / "master.key").read_bytes(), "strongroom/cas/rows/v1")
    assert json.loads(open_box(key, head, b'["head",1]')) == [len(log), before.hex()]
    assert json.loads(open_box(key, row, f'["policies","{name}",1]'.encode()))["text"] == text


def test_every_path_limit_and_reserved_variable_is_in_the_specification():
    shown = SPEC.replace("…", "/v1/policies/NS/NAME")
    for route in app.cas_application(None, None).routes:
        path = route.path.replace("namespace", "NS")
        assert re.sub(r"{(\w+)}", lambda match: match[1].upper(), path) in shown
    assert f"{app._MAX_BODY:,}" in SPEC
    assert f"{document.MAX_DOCUMENT:,}" in SPEC
    for name in re.findall(r"[A-Z_]{2,}", policy._RESERVED.pattern):
        assert f"`{name}" in SPEC
