"""What a CAS counts for its operator, in Prometheus' form, on a port of its own.

Rules:

- Nothing that a stranger chooses becomes a label: paths are templates, errors are the tree's words, kinds of evidence
  are those that exist. So the number of series is bounded.
- Tenants' names are labels only where the operator says so.
- Values that are states are asked for when Prometheus asks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from strongroom.errors import MissingDependencyError, PortInUseError, StrongroomError

_log = logging.getLogger("strongroom.cas")
_LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)  # seconds

Values = Mapping[tuple[str, ...], float]
"""A state's values by those of its labels."""


class Metrics:
    """Counts nothing: a CAS without `--metrics`."""

    def request(self, method: str, path: str, status: int, seconds: float) -> None:
        """An answer. `path` is an endpoint's template."""

    def error(self, code: str) -> None:
        """An answer that was an error, by its word: ``database`` where the database could not be used."""

    def attestation(self, tee: str, outcome: str, policy: str) -> None:
        """An attestation that was tried: `outcome` is ``ok`` or an error's word."""

    def watch(self, name: str, text: str, labels: tuple[str, ...], read: Callable[[], Values]) -> None:
        """A state, which `read` tells from another thread, whenever it is asked for."""


class Prometheus(Metrics):
    """Counts, for Prometheus to ask for.

    Args:
        names: whether policies' names are labels.

    Raises:
        MissingDependencyError: the extra `metrics` is not installed.
    """

    def __init__(self, *, names: bool = False) -> None:
        try:
            import prometheus_client
        except ImportError:
            raise MissingDependencyError(
                "prometheus-client: is not installed, and --metrics needs it", hint="pip install 'strongroom[metrics]'"
            ) from None
        self._client: Any = prometheus_client
        self._names = names
        self.registry = prometheus_client.CollectorRegistry()
        self._requests = prometheus_client.Counter(
            "strongroom_cas_requests", "Answers", ("method", "path", "status"), registry=self.registry
        )
        self._seconds = prometheus_client.Histogram(
            "strongroom_cas_request_seconds",
            "From a request's head to its answer",
            ("method", "path"),
            buckets=_LATENCIES,
            registry=self.registry,
        )
        self._errors = prometheus_client.Counter(
            "strongroom_cas_errors", "Answers that were errors, by their word", ("code",), registry=self.registry
        )
        labels = ("tee", "outcome", "policy") if names else ("tee", "outcome")
        self._attestations = prometheus_client.Counter(
            "strongroom_cas_attestations", "Attestations that were tried", labels, registry=self.registry
        )

    def request(self, method: str, path: str, status: int, seconds: float) -> None:
        self._requests.labels(method, path, str(status)).inc()
        self._seconds.labels(method, path).observe(seconds)

    def error(self, code: str) -> None:
        self._errors.labels(code).inc()

    def attestation(self, tee: str, outcome: str, policy: str) -> None:
        self._attestations.labels(tee, outcome, *((policy,) if self._names else ())).inc()

    def watch(self, name: str, text: str, labels: tuple[str, ...], read: Callable[[], Values]) -> None:
        self.registry.register(_State(f"strongroom_cas_{name}", text, labels, read))

    def text(self) -> str:
        """All of it, as Prometheus reads it."""
        shown: bytes = self._client.generate_latest(self.registry)
        return shown.decode()

    @contextmanager
    def serving(self, host: str, port: int) -> Iterator[int]:
        """Answer Prometheus in plain HTTP, from a thread of its own; the port.

        Raises:
            PortInUseError: the address cannot be listened on.
        """
        try:
            server, thread = self._client.start_http_server(port, addr=host, registry=self.registry)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise PortInUseError(
                f"--metrics: {host}:{port}: {reason}", hint="choose another port; port 0 takes any free one"
            ) from None
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _State:
    """A collector of one gauge."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...], read: Callable[[], Values]) -> None:
        self._name, self._text, self._labels, self._read = name, text, labels, read

    def describe(self) -> list[Any]:
        return []  # nothing is asked before Prometheus does

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        family = GaugeMetricFamily(self._name, self._text, labels=self._labels)
        try:
            for values, value in self._read().items():
                family.add_metric(values, value)
        except StrongroomError as error:
            _log.warning("metrics: %s: %s", self._name, error.message)
            return
        except Exception:  # the others are told all the same
            _log.exception("metrics: %s", self._name)
            return
        yield family
