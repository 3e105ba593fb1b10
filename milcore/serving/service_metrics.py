"""Prometheus metrics of a service."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from milcore.serving.admission import Admission
from milcore.serving.score import Score

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BAGS = (1, 2, 4, 8, 16, 32, 64)


class ServiceMetrics:
    """Counters of the gateway.

    Args:
        admissions: of each model, by name.
    """

    def __init__(self, admissions: Mapping[str, Admission]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "milcore_requests", "Requests by HTTP status", ["model", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "milcore_request_seconds", "Seconds from the head of a request to its answer, of those that are scored",
            ["model"], buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        self._bags = Counter("milcore_bags", "Bags that are scored", ["model"], registry=self._registry)
        self._instances = Counter("milcore_instances", "Instances of these bags", ["model"], registry=self._registry)
        self._batches = Histogram(
            "milcore_batch_bags", "Bags that passed through the models with a bag, itself too", ["model"],
            buckets=BAGS, registry=self._registry,
        )  # fmt: skip
        self._registry.register(QueueLengths(admissions))

    def count_answer(self, model: str, status: int) -> None:
        """Count a request to a model by the status of its answer."""
        self._requests.labels(model, str(status)).inc()

    def count_score(self, model: str, score: Score, instances: int, seconds: float) -> None:
        """Count a bag that is scored."""
        self._seconds.labels(model).observe(seconds)
        self._bags.labels(model).inc()
        self._instances.labels(model).inc(instances)
        self._batches.labels(model).observe(score.batch)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)


class QueueLengths(Collector):
    """Gauge of the requests to each model that are in work or waiting."""

    def __init__(self, admissions: Mapping[str, Admission]) -> None:
        self._admissions = admissions

    def collect(self) -> list[GaugeMetricFamily]:
        """Lengths of now."""
        lengths = GaugeMetricFamily("milcore_queue_length", "Requests in work or waiting", labels=["model"])
        for name, admission in self._admissions.items():
            lengths.add_metric([name], admission.length)
        return [lengths]
