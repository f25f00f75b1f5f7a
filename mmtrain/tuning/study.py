"""What Optuna makes of a sweep's trials: new values, which go on, the front, and what mattered.

Its study is made from the trials' records whenever it is asked, in memory. Optuna 5.0 could keep it
in a file (`JournalStorage`); a disk that is full leaves half a line there, which spoils the file.
"""

import json
import math
from collections.abc import Iterable, Sequence

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import JsonValue

from mmtrain.tuning.sweep import (
    LARGER_IS_BETTER,
    Choice,
    Objective,
    SweepConfig,
    Whole,
    measured_steps,
)
from mmtrain.tuning.trials import TrialRecord

_FEWEST = 4  # trials from which what mattered is told
_NUMBER = "number"  # of a record, as a user attribute of Optuna's trial


def optuna_space(sweep: SweepConfig) -> dict[str, BaseDistribution]:
    """The space of a sweep in Optuna's terms; of a choice, the values as JSON texts."""
    space: dict[str, BaseDistribution] = {}
    for name, one in sweep.space.items():
        log = one.kind in ("loguniform", "logint")
        if isinstance(one, Choice):
            space[name] = CategoricalDistribution([json.dumps(value) for value in one.values])
        elif isinstance(one, Whole):
            space[name] = IntDistribution(one.low, one.high, log=log)
        else:
            space[name] = FloatDistribution(one.low, one.high, log=log)
    return space


def build_sampler(sweep: SweepConfig, *, num_known: int) -> BaseSampler:
    """The sweep's sampler; one that goes on does not draw the first points again."""
    seed = sweep.seed + num_known
    if sweep.searcher == "random" or sweep.scheduler == "pbt":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, n_startup_trials=min(10, max(2, sweep.num_trials // 3)))


def draw_values(
    sweep: SweepConfig, records: Iterable[TrialRecord], *, sampler: BaseSampler
) -> dict[str, JsonValue]:
    """Values of a new trial, by what the ended ones have told."""
    study = build_study(sweep, records)
    study.sampler = sampler
    params = study.ask(optuna_space(sweep)).params
    return {
        name: json.loads(params[name]) if isinstance(one, Choice) else params[name]
        for name, one in sweep.space.items()
    }


def build_study(sweep: SweepConfig, records: Iterable[TrialRecord]) -> optuna.Study:
    """A study in memory that holds the trials that have ended."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    larger = [name in LARGER_IS_BETTER for name in sweep.objectives]
    study = optuna.create_study(directions=["maximize" if one else "minimize" for one in larger])
    study.add_trials(_optuna_trial(record, sweep) for record in records if record.has_ended)
    return study


def _optuna_trial(record: TrialRecord, sweep: SweepConfig) -> FrozenTrial:
    """A trial that has ended; the search avoids what was pruned, and forgets what failed."""
    values, state = None, TrialState.PRUNED if len(sweep.objectives) == 1 else TrialState.FAIL
    measured = [record.objectives.get(name, math.nan) for name in sweep.objectives]
    if record.state == "finished" and not np.isnan(measured).any():
        values, state = measured, TrialState.COMPLETE
    params = {
        name: json.dumps(record.values[name]) if isinstance(one, Choice) else record.values[name]
        for name, one in sweep.space.items()
    }
    return create_trial(
        state=state,
        values=values,
        params=params,
        distributions=optuna_space(sweep),
        user_attrs={_NUMBER: record.number},
        intermediate_values={point.step: point.score for point in record.points},
    )


def is_pruned(sweep: SweepConfig, record: TrialRecord, others: Iterable[TrialRecord]) -> bool:
    """Whether a trial of 'asha' is not among the best of the rung that it has reached.

    Optuna's successive halving judges each trial when it comes to a rung; here it sees all trials
    come there again, this one last.
    """
    if sweep.scheduler != "asha":
        return False
    first, *_ = measured_steps(record.num_steps, sweep=sweep)
    pruner = SuccessiveHalvingPruner(min_resource=first, reduction_factor=sweep.reduction)
    study, pruned = optuna.create_study(direction="maximize", pruner=pruner), False
    for one in (*others, record):
        trial = study.ask()
        for point in one.points:
            trial.report(point.score, point.step)
            pruned = trial.should_prune()
    return pruned


def pareto_front(records: Iterable[TrialRecord], *, sweep: SweepConfig) -> list[TrialRecord]:
    """Finished trials that no other beats: as good in every objective and better in one."""
    by_number = {record.number: record for record in records}
    best = build_study(sweep, by_number.values()).best_trials
    return [by_number[trial.user_attrs[_NUMBER]] for trial in best]


def knee(front: Sequence[TrialRecord], *, objectives: Sequence[Objective]) -> TrialRecord:
    """The front's trial nearest to the best of each objective, each scaled to the front's range.

    argmin_t sum_k ((c_k(t) - min c_k) / (max c_k - min c_k))^2        of costs c; ties: the first
    """
    signs = [-1 if name in LARGER_IS_BETTER else 1 for name in objectives]
    costs = np.array(
        [
            [sign * record.objectives[name] for sign, name in zip(signs, objectives, strict=True)]
            for record in front
        ]
    )
    spans = np.ptp(costs, axis=0)
    shares = (costs - costs.min(axis=0)) / np.where(spans > 0, spans, 1)
    return front[int((shares**2).sum(axis=1).argmin())]


def importances(records: Iterable[TrialRecord], *, sweep: SweepConfig) -> dict[str, float]:
    """How much each field of the space mattered for the first objective, the shares summing to 1.

    PED-ANOVA (arXiv:2304.10255) over finished trials, as Optuna has it; empty where there are too
    few to tell, or all are equal.
    """
    first = sweep.model_copy(update={"objectives": sweep.objectives[:1]})
    study = build_study(first, [record for record in records if record.state == "finished"])
    values = [trial.values[0] for trial in study.trials]
    if len(values) < _FEWEST or np.ptp(values) < 1e-12:
        return {}
    shares = optuna.importance.get_param_importances(study)
    return {name: share for name, share in shares.items() if math.isfinite(share)}
