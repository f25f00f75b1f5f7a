"""What `adaptive` decides: how the next steps are shared out, by what tasks have left to learn."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from pipelines.errors import PlanError
from pipelines.step_counts import largest_remainders


class AdaptiveConfig(BaseModel):
    """How 'adaptive' makes rates of losses; `adapted_counts` says it as an equation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    decide_every: int = Field(
        default=500, ge=1, description="Steps for which rates are decided; a stream starts anew."
    )
    smoothing: float = Field(
        default=0.5, ge=0, lt=1, description="What a smoothed loss keeps of itself at a decision."
    )
    power: float = Field(
        default=1.0, description="Of the share of its first loss that a task has left; 0: none."
    )


def adapted_counts(
    losses: Mapping[str, float],
    *,
    first: Mapping[str, float],
    rates: Mapping[str, float],
    config: AdaptiveConfig,
) -> dict[str, int]:
    """Mini-batches of each task until the next decision, at least one of each.

        r_j ~ rate_j * (L_j / L_j(0))^a        after the relative inverse training rate of
                                               Chen et al., arXiv:1711.02257, Sec. 3

    Args:
        losses: smoothed loss of each task, positive.
        first: L_j(0), its smoothed loss at the first decision.
        rates: without losses.
        config: a and the number of steps.

    Raises:
        PlanError: there are fewer steps than tasks.
    """
    left = {task: max(losses[task], 1e-9) / max(first[task], 1e-9) for task in rates}
    wanted = {task: rate * left[task] ** config.power for task, rate in rates.items()}
    whole, spare = sum(wanted.values()), config.decide_every - len(rates)
    if spare < 0:
        raise PlanError(
            f"schedule.adaptive.decide_every={config.decide_every} steps have no mini-batch for "
            f"each of {len(rates)} tasks; use at least {len(rates)}"
        )
    parts = {task: spare * rate / whole for task, rate in wanted.items()}
    return {task: 1 + more for task, more in largest_remainders(parts, total=spare).items()}


class Mixing(BaseModel):
    """What an adaptive schedule knows: with it a resumed run decides as the straight one.

    Floats go to JSON and back to the bit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    decisions: dict[int, dict[str, int]] = Field(
        default={}, description="Mini-batches of each task until the next, by the deciding step."
    )
    smoothed: dict[str, float] = Field(default={}, description="Loss of each task, smoothed.")
    first: dict[str, float] = Field(default={}, description="Each task's first smoothed loss.")
    totals: dict[str, float] = Field(default={}, description="Losses since the last decision.")
    counts: dict[str, int] = Field(default={}, description="Steps that they are of.")

    def with_losses(self, losses: Mapping[str, float]) -> "Mixing":
        """After a step whose tasks had these mean losses, over all ranks."""
        totals = {task: self.totals.get(task, 0.0) + loss for task, loss in losses.items()}
        counts = {task: self.counts.get(task, 0) + 1 for task in losses}
        return self.model_copy(
            update={"totals": self.totals | totals, "counts": self.counts | counts}
        )

    def decided(self, step: int, *, rates: Mapping[str, float], config: AdaptiveConfig) -> "Mixing":
        """With a decision at `step`; sums begin anew.

            s_j <- b s_j + (1 - b) mean loss since the last decision

        Args:
            step: from which the decision holds.
            rates: of the tasks, without losses.
            config: b, and how losses make rates.
        """
        means = {task: self.totals[task] / self.counts[task] for task in self.totals}
        kept = config.smoothing
        smoothed = self.smoothed | {
            task: kept * self.smoothed.get(task, mean) + (1 - kept) * mean
            for task, mean in means.items()
        }
        first = smoothed | self.first
        counts = adapted_counts(smoothed, first=first, rates=rates, config=config)
        return Mixing(decisions=self.decisions | {step: counts}, smoothed=smoothed, first=first)
