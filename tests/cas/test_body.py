"""How long a request may take to arrive."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import pytest

from strongroom.cas.api import bodies
from strongroom.cas.service import app
from strongroom.cas.state.store import Store
from strongroom.errors import ChannelError, from_wire


@pytest.mark.parametrize("before", [[], [b"{"], [b"{", b'"policy"']])
def test_a_body_that_does_not_arrive_ends_the_request(tmp_path, monkeypatch, before):
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.05)
    store = Store(tmp_path)
    application = app.cas_application(store, cast(Any, None))
    parts, sent = list(before), []

    async def receive():
        if not parts:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": parts.pop(0), "more_body": True}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/nonce",
        "raw_path": b"/v1/nonce",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    asyncio.run(asyncio.wait_for(application(scope, receive, send), 10))
    store.close()
    assert sent[0]["status"] == 408
    error = from_wire(json.loads(sent[1]["body"]))
    assert isinstance(error, ChannelError)
    assert "did not arrive within" in error.message
    assert error.hint
