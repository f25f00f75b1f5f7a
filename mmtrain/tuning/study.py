"""The sweep as Optuna knows it: distributions, the trials of before, and what mattered.

Nothing of Optuna's is written to disk; its study is made anew from the trials' records.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import JsonValue

from mmtrain.tuning.sweep import (
    LARGER_IS_BETTER,
    Choice,
    Distribution,
    LogUniform,
    Objective,
    SweepConfig,
    Uniform,
    Values,
)
from mmtrain.tuning.trials import TrialRecord

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

STUDY = "sweep"
_FEWEST = 4  # trials from which what mattered is told


def optuna_distribution(distribution: Distribution) -> "BaseDistribution":
    """The same distribution in Optuna's terms; of a choice, the values as JSON texts."""
    from optuna import distributions

    if isinstance(distribution, Choice):
        return distributions.CategoricalDistribution([json.dumps(v) for v in distribution.values])
    low, high = distribution.low, distribution.high
    if isinstance(distribution, Uniform | LogUniform):
        log = isinstance(distribution, LogUniform)
        return distributions.FloatDistribution(float(low), float(high), log=log)
    return distributions.IntDistribution(int(low), int(high), log=distribution.kind == "logint")


def to_optuna(values: Values, *, space: Mapping[str, Distribution]) -> dict[str, Any]:
    """Values as Optuna holds them."""
    return {
        field: json.dumps(values[field]) if isinstance(distribution, Choice) else values[field]
        for field, distribution in space.items()
    }


def from_optuna(
    params: Mapping[str, Any], *, space: Mapping[str, Distribution]
) -> dict[str, JsonValue]:
    """The values of an Optuna trial."""
    return {
        field: json.loads(params[field]) if isinstance(distribution, Choice) else params[field]
        for field, distribution in space.items()
    }


def build_sampler(sweep: SweepConfig, *, num_known: int) -> "BaseSampler":
    """The sweep's sampler; one that goes on does not draw the first points again."""
    from optuna import samplers

    seed = sweep.seed + num_known
    if sweep.searcher == "random":
        return samplers.RandomSampler(seed=seed)
    return samplers.TPESampler(seed=seed, n_startup_trials=min(10, max(2, sweep.num_trials // 3)))


def study_storage(sweep: SweepConfig, records: Iterable[TrialRecord]) -> "BaseStorage":
    """A study in memory that holds what has ended."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(
        storage=storage,
        study_name=STUDY,
        directions=[direction(name) for name in sweep.objectives],
    )
    space = {name: optuna_distribution(one) for name, one in sweep.space.items()}
    for record in records:
        if record.has_ended:
            study.add_trial(_frozen(record, sweep=sweep, space=space))
    return storage


def direction(objective: Objective) -> Literal["maximize", "minimize"]:
    """As Optuna calls it."""
    return "maximize" if objective in LARGER_IS_BETTER else "minimize"


def _frozen(
    record: TrialRecord, *, sweep: SweepConfig, space: "Mapping[str, BaseDistribution]"
) -> "FrozenTrial":
    from optuna.trial import TrialState, create_trial

    params = to_optuna(record.values, space=sweep.space)
    given: dict[str, Any] = {"params": params, "distributions": dict(space)}
    if record.state == "finished":
        values = [record.objectives[name] for name in sweep.objectives]
        return create_trial(state=TrialState.COMPLETE, values=values, **given)
    if len(sweep.objectives) > 1:
        return create_trial(state=TrialState.FAIL, **given)
    seen = {point.step: point.score for point in record.points}
    return create_trial(state=TrialState.PRUNED, intermediate_values=seen, **given)


def importances(
    records: Sequence[TrialRecord], *, sweep: SweepConfig, objective: Objective
) -> dict[str, float]:
    """How much each field of the space mattered for an objective, the shares summing to 1.

    PED-ANOVA (arXiv:2304.10255) over finished trials, as Optuna has it; empty where there are too
    few to tell, or all are equal.
    """
    import optuna

    finished = [record for record in records if record.state == "finished"]
    measured = [record.objectives[objective] for record in finished]
    if len(finished) < _FEWEST or max(measured) - min(measured) < 1e-12:
        return {}
    one = sweep.model_copy(update={"objectives": (objective,)})
    storage = study_storage(one, finished)
    study = optuna.load_study(study_name=STUDY, storage=storage)
    found = optuna.importance.get_param_importances(study)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def population(
    sweep: SweepConfig,
    cut_off: Sequence[TrialRecord],
    *,
    taken: Sequence[TrialRecord],
    todo: int,
) -> dict[int, dict[str, JsonValue]]:
    """Values by number: those of trials that were cut off, then new ones as the seed draws them.

    Args:
        sweep: whose space and seed.
        cut_off: trials to take up again.
        taken: all trials of before.
        todo: trials still to run.
    """
    members = {record.number: dict(record.values) for record in cut_off}
    first = max((record.number for record in taken), default=-1) + 1
    rng = np.random.default_rng((sweep.seed, first))
    for number in range(first, first + todo - len(cut_off)):
        members[number] = {name: draw(one, rng=rng) for name, one in sweep.space.items()}
    return members


def draw(distribution: Distribution, *, rng: np.random.Generator) -> JsonValue:
    """One value of a distribution."""
    if isinstance(distribution, Choice):
        return distribution.values[int(rng.integers(len(distribution.values)))]
    low, high = distribution.low, distribution.high
    if isinstance(distribution, Uniform):
        return float(rng.uniform(low, high))
    if isinstance(distribution, LogUniform):
        return float(math.exp(rng.uniform(math.log(low), math.log(high))))
    return int(rng.integers(int(low), int(high) + 1))
