"""The counters of /metrics, in Prometheus's text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE

__all__ = ["CONTENT_TYPE", "Metrics"]

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_FACES = (1, 2, 4, 8, 16, 24, 32)


class Metrics:
    """Counters of one service, in a registry of its own: an application may have several."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        self.requests = counter("fer_requests", "Answers by route and status.", "route", "status")
        self.refused = counter("fer_requests_refused", "Requests without a result, by reason.", "reason")
        self.images = counter("fer_images", "Images by result.", "model", "result")
        self.faces = counter("fer_faces", "Classified faces.", "model", "expression")
        self.inferences = counter("fer_inferences", "Faces classified through /v2.", "model")
        self.expressions_refused = counter(
            "fer_expressions_refused", "Faces whose expression should not be trusted, by reason.", "model", "reason"
        )
        self.self_tests = counter("fer_self_tests", "Replays of the certificate, by result.", "model", "result")
        self.reloads = counter("fer_model_reloads", "Model files that changed, by result.", "result")
        self.stages = Histogram(
            "fer_stage_seconds", "Seconds by stage.", ("stage",), buckets=_SECONDS, registry=self.registry
        )
        self.seconds = Histogram(
            "fer_request_seconds", "Seconds from a request's headers to its answer.", ("route",), buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.batches = Histogram(
            "fer_batch_faces", "Faces classified together.", buckets=_FACES, registry=self.registry
        )
        self.in_progress = Gauge("fer_requests_in_progress", "Requests in progress.", registry=self.registry)
        self.body_bytes = Gauge("fer_body_bytes", "Bytes of requests in memory.", registry=self.registry)
        self.viewers = Gauge("fer_live_connections", "Connections that watch the camera.", registry=self.registry)
        self.connections = Gauge("fer_connections", "Open connections.", registry=self.registry)

    def to_text(self) -> bytes:
        """The page."""
        return generate_latest(self.registry)
