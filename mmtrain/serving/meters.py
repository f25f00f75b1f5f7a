"""What a server counts, in Prometheus' text form; the counts of all replicas are added up."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
PATHS = ("/", "/v1/predict", "/v1/tasks", "/healthz", "/metrics", "/docs", "/openapi.json")


class Meters:
    """Counts of one replica."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        labels = ("path", "status")
        self.requests = Counter("mmtrain_requests", "Requests.", labels, registry=registry)
        self.request_s = Histogram(
            "mmtrain_request_seconds", "Time of a request.", ("path",), registry=registry,
            buckets=_SECONDS,
        )  # fmt: skip
        self.batch_size = Histogram(
            "mmtrain_batch_size", "Requests answered by one pass.", registry=registry,
            buckets=_SIZES,
        )  # fmt: skip
        self.held = Gauge("mmtrain_held", "Requests in the house.", registry=registry)

    def count(self, path: str, *, status: int, seconds: float) -> None:
        """Counts a request; a path that is none of ours counts as "other"."""
        shown = path if path in PATHS else "other"
        self.requests.labels(shown, str(status)).inc()
        self.request_s.labels(shown).observe(seconds)

    def text(self) -> str:
        """All counts."""
        return generate_latest(self._registry).decode()


def add_up(texts: Sequence[str]) -> str:
    """Counts of several replicas as one: samples of the same name and labels are added."""
    families: dict[str, Metric] = {}
    sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            if family.name.endswith("_created"):
                continue
            families.setdefault(family.name, family)
            values = sums.setdefault(family.name, defaultdict(float))
            for sample in family.samples:
                values[sample.name, tuple(sample.labels.items())] += sample.value
    for name, family in families.items():
        family.samples = [Sample(one, dict(of), value) for (one, of), value in sums[name].items()]
    return generate_latest(_Counted(families)).decode()


class _Counted(dict[str, Metric]):
    """Families by name, as `generate_latest` takes them."""

    def collect(self) -> Iterable[Metric]:
        """All families."""
        return self.values()
