"""What a monitoring system reads: counts and times in Prometheus's format, in a registry of the service's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

SPACE = "hybridmednet"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """waiting: how many images wait now. model: what is served, texts by name."""

    def __init__(self, waiting: Callable[[], float], model: Mapping[str, str]) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter("requests", "Requests by route and status", "route", "status")
        self._images = self._counter("images", "Images by outcome", "outcome")
        self._latency = self._histogram("request_seconds", "From a request to its answer", _SECONDS, "route")
        self._model = self._histogram("model_seconds", "The model's time with a batch", _SECONDS)
        self._sizes = self._histogram("batch_images", "Images asked about at once", _IMAGES)
        queue = Gauge("queue_images", "Images that wait or are worked on", namespace=SPACE, registry=self.registry)
        queue.set_function(waiting)
        Info("model", "What is served", namespace=SPACE, registry=self.registry).info(dict(model))

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(name, help_text, labels, namespace=SPACE, registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, help_text, labels, namespace=SPACE, registry=self.registry, buckets=buckets)

    def asked(self, images: int, seconds: float) -> None:
        """A batch went through the model."""
        self._sizes.observe(images)
        self._model.observe(seconds)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(route, str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def outcome(self, kind: str, count: int = 1) -> None:
        """Images or studies were 'predicted' or had an 'error'."""
        self._images.labels(kind).inc(count)

    def text(self) -> bytes:
        """What is scraped."""
        return generate_latest(self.registry)
