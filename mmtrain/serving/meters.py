"""What a server counts, in Prometheus' text form; the counts of all replicas are added up."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
PATHS = ("/", "/v1/predict", "/v1/tasks", "/healthz", "/metrics", "/docs", "/openapi.json")


class Meters:
    """Counts of one replica."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "mmtrain_requests", "Requests.", ("path", "status"), registry=self._registry
        )
        self.request_s = Histogram(
            "mmtrain_request_seconds",
            "Time of a request.",
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.batch_size = Histogram(
            "mmtrain_batch_size",
            "Requests answered by one pass.",
            buckets=_SIZES,
            registry=self._registry,
        )
        self.held = Gauge("mmtrain_held", "Requests in the house.", registry=self._registry)

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
    heads: dict[str, str] = {}
    sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            name = family.name + ("_total" if family.type == "counter" else "")
            heads[name] = f"# HELP {name} {family.documentation}\n# TYPE {name} {family.type}\n"
            of = sums.setdefault(name, {})
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    key = (sample.name, tuple(sample.labels.items()))
                    of[key] = of.get(key, 0.0) + sample.value
    return "".join(
        heads[name] + "".join(_line(*key, value=value) for key, value in of.items())
        for name, of in sums.items()
        if of
    )


def _line(name: str, labels: tuple[tuple[str, str], ...], *, value: float) -> str:
    shown = ",".join(f'{label}="{text}"' for label, text in labels)
    return f"{name}{{{shown}}} {value}\n" if shown else f"{name} {value}\n"
