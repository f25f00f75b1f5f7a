"""Promotion's gate: requirements on what was measured of a version, as text; no MLflow here.

    wer<0.3    speech_recognition.wer<30%    parsing.bracket_f1>=0.8    log_perplexity<1.5

A bound of a metric in percent is a share below 1, or has a percent sign: "wer<1" could mean either
and is refused. A metric without a task is required of every task that has it.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mmtrain.evaluate.metrics import SHIPPED, load_metric
from mmtrain.evaluate.results import BASELINE, with_unit
from pipelines.errors import MMTrainError, UnknownNameError

_SPLIT = "test"
_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_FORM = re.compile(
    r"\s*(?:(?P<task>[\w-]+)\.)?(?P<metric>[\w-]+)\s*(?P<comparison><=|>=|<|>)"
    r"\s*(?P<bound>-?\d+(?:\.\d*)?(?:e-?\d+)?)\s*(?P<percent>%?)\s*",
    re.IGNORECASE,
)


class RequirementError(MMTrainError):
    """A requirement cannot be read, or a version does not fulfil it."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One metric of one task on one split, in the metric's own unit; baseline None: not known."""

    task: str
    metric: str
    value: float
    baseline: float | None
    split: str = _SPLIT

    @property
    def name(self) -> str:
        """As a requirement names it."""
        return f"{self.task}.{self.metric}"


@dataclass(frozen=True, slots=True)
class Requirement:
    """What is asked of a metric. `bound` is in the metric's own unit; task None: of every task."""

    text: str
    task: str | None
    metric: str
    comparison: str
    bound: float

    @classmethod
    def read(cls, text: str) -> "Requirement":
        """A requirement from its text.

        Raises:
            RequirementError: it is none, or its bound is a share or percent, one cannot say which.
            UnknownNameError: there is no such metric.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise RequirementError(
                f"{text!r} is no requirement; write METRIC<BOUND or TASK.METRIC>=BOUND, with one "
                "of < <= > >=, e.g. 'wer<0.3' or 'parsing.bracket_f1>=80%'"
            )
        metric, bound = load_metric(found["metric"]), float(found["bound"])
        if metric.unit != "%" and found["percent"]:
            raise RequirementError(f"{text!r}: {metric.name} is not in percent; leave out the sign")
        if metric.unit == "%" and not found["percent"]:
            if abs(bound) >= 1:
                raise RequirementError(
                    f"{text!r}: {metric.name} is a share below 1 or in percent; "
                    f"write {found['bound']}% for percent"
                )
            bound *= 100
        return cls(text.strip(), found["task"], metric.name, found["comparison"], bound)

    def check(self, measurements: Sequence[Measurement]) -> list[Measurement]:
        """The measurements that fulfil it, one for each task.

        Raises:
            RequirementError: one does not; says what was measured.
            UnknownNameError: it was not measured; names the nearest that was.
        """
        required = [
            one
            for one in measurements
            if one.split == _SPLIT and one.metric == self.metric and self.task in (None, one.task)
        ]
        if not required:
            name = f"{self.task}.{self.metric}" if self.task else self.metric
            raise _not_measured(name, self.task, measurements)
        for one in required:
            if not _COMPARISONS[self.comparison](one.value, self.bound):
                raise RequirementError(
                    f"{self.text} is not met: {one.name} is {shown(one.value, one.metric)}"
                )
        return required


def _not_measured(name: str, task: str | None, measurements: Sequence[Measurement]) -> MMTrainError:
    own = [one for one in measurements if one.split == _SPLIT]
    if not own:
        return RequirementError(
            f"{name} was not measured of this version, nor anything else; "
            "`mmtrain evaluate models:/NAME/VERSION --record` measures it"
        )
    known = dict.fromkeys(one.name if task else one.metric for one in own)
    return UnknownNameError("measured metric", name, tuple(known))


def to_measurements(metrics: Mapping[str, float]) -> list[Measurement]:
    """Measurements from MLflow's metrics, named as `results.to_metrics` names them."""
    found: list[Measurement] = []
    for key, value in metrics.items():
        split, _, rest = key.partition("/")
        task, _, metric = rest.rpartition("/")
        if split.startswith(_SPLIT) and task:
            baseline = metrics.get(f"{BASELINE}/{task}/{metric}") if split == _SPLIT else None
            found.append(Measurement(task, metric, value, baseline, split))
    return sorted(found, key=lambda one: (one.split, one.task))


def shown(value: float, metric: str) -> str:
    """A metric's value with its unit; a user's own, of which the name alone was kept, has none."""
    return with_unit(value, SHIPPED[metric].unit if metric in SHIPPED else "")


def label(metric: str) -> str:
    """A metric as a person calls it; a user's own by its name."""
    return SHIPPED[metric].label if metric in SHIPPED else metric
