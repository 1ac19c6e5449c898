"""httpx for whoever speaks to an attested service without our client: `httpx.Client(transport=PinnedTransport(ours))`.

Before each request the service is appraised if it has to be, and the request goes out only over a connection that
showed the key of that appraisal. Other libraries take the context of `channel.pinned`.
"""

from __future__ import annotations

import importlib
import threading
from typing import TYPE_CHECKING, Any

from strongroom.channel import expect_key
from strongroom.channel.pinned import pinned_context
from strongroom.errors import MissingDependencyError

if TYPE_CHECKING:
    from strongroom.serve.client import Client

try:
    httpx: Any = importlib.import_module("httpx")
except ImportError:
    raise MissingDependencyError("httpx: is not installed", hint="pip install httpx") from None


class PinnedTransport(httpx.BaseTransport):  # type: ignore[misc]  # httpx need not be there
    """Sends requests to an attested service, wherever their URLs say it is. Raises what `Client.appraise` raises."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._key, self._inner = "", None

    def handle_request(self, request: Any) -> Any:
        """One request, over a connection of the attested key."""
        return self._pinned(self._client.appraise().key).handle_request(request)

    def _pinned(self, key: str) -> Any:
        """Connections of a service that came back with another key are left to end with their answers."""
        with self._lock:
            if key != self._key:
                self._key = key
                self._inner = httpx.HTTPTransport(verify=pinned_context(expect_key(key)), trust_env=False)
            return self._inner

    def close(self) -> None:
        with self._lock:
            if self._inner is not None:
                self._inner.close()
            self._key, self._inner = "", None
