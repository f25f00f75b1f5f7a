"""What a recipe says of subtasks and their masks."""

import re
from collections.abc import Collection
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MOST_ENUMERATED = 6  # basis subtasks: 63 masked passes a micro-batch


class PruningConfig(BaseModel):
    """Basis subtasks, and how their masks are learned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    subtasks: dict[str, tuple[str, ...]] = Field(
        min_length=1,
        description="Basis subtasks: by name, its whole tasks ('task'), or its classes of one task "
        "('task:class', a class by name or number).",
    )
    overlap: Literal["allow", "refuse"] = Field(
        default="allow", description="Whether a task or class may be in several basis subtasks."
    )
    uncovered: Literal["allow", "refuse"] = Field(
        default="refuse", description="Whether a task or class may be in no basis subtask."
    )
    generator: Literal["direct", "network"] = Field(
        default="direct",
        description="Masks are parameters of each basis subtask, or a network's answer to a union.",
    )
    generator_dim: int = Field(default=64, ge=1, description="Of 'network': its hidden units.")
    granularity: Literal["unit", "layer"] = Field(
        default="unit", description="What has a utility: each unit, or a group of units as one."
    )
    tau: float = Field(default=0.5, description="Utility above which a unit is kept.")
    sigma: float = Field(
        default=1.0,
        gt=0,
        description="Standard deviation of drawn utilities, before their absolute value is taken.",
    )
    scaling: Literal["on", "off"] = Field(
        default="on", description="Factors on inputs of convolutions that make up for cut units."
    )
    straight_through: Literal["identity", "clipped"] = Field(
        default="identity",
        description="Gradient that passes the threshold: all, or where |utility - tau| < 1.",
    )
    gamma: float = Field(
        default=0.5,
        ge=0,
        description="Price of utility: weight in the loss of its mean over units.",
    )
    l1: Literal["union", "basis"] = Field(
        default="union",
        description="Whose utility is priced: the union's, or each of its basis subtasks'.",
    )
    warmup_steps: int = Field(default=0, ge=0, description="First steps, in which gamma is 0.")
    beta: float = Field(
        default=10.0,
        gt=0,
        allow_inf_nan=False,
        description="Weight in the loss of a subtask's classes; other classes weigh 1.",
    )
    num_samples: int = Field(
        default=2,
        ge=1,
        description="Masked passes of a micro-batch: 1: a drawn union; 2: all subtasks too; 3: one "
        "basis subtask too; more: more drawn unions.",
    )
    law: Literal["stratified", "uniform", "basis_only", "exact"] = Field(
        default="stratified",
        description="How unions are drawn: size first, all alike, basis subtasks alone; 'exact': "
        "none is drawn, all take part.",
    )
    weighting: Literal["equal", "importance"] = Field(
        default="equal",
        description="Of drawn unions: 1 each, or what makes their mean that over all unions.",
    )
    train: Literal["all", "masks"] = Field(
        default="all", description="Model and masks, or masks alone on a model that stays."
    )
    learning_rate_scale: float = Field(
        default=5.0, gt=0, description="Learning rate of masks, in learning rates of the model."
    )

    def only(self, tasks: Collection[str]) -> "PruningConfig | None":
        """The config with what its subtasks have of these tasks; None: no subtask has any."""
        kept = {
            name: tuple(entry for entry in entries if entry.partition(":")[0] in tasks)
            for name, entries in self.subtasks.items()
        }
        subtasks = {name: entries for name, entries in kept.items() if entries}
        return self.model_copy(update={"subtasks": subtasks}) if subtasks else None

    @field_validator("subtasks")
    @classmethod
    def _subtasks_are_one_kind(
        cls, subtasks: dict[str, tuple[str, ...]]
    ) -> dict[str, tuple[str, ...]]:
        for name, entries in subtasks.items():
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise ValueError(f"subtask {name!r}: use letters, digits, '_' and '-' in names")
            if not entries:
                raise ValueError(f"subtask {name} is empty; name its tasks or classes, or drop it")
            if len(set(entries)) < len(entries):
                raise ValueError(f"subtask {name} names an entry twice: {', '.join(entries)}")
            parts = (entry.partition(":") for entry in entries)
            if len({task if colon else None for task, colon, _ in parts}) > 1:
                raise ValueError(
                    f"subtask {name} mixes {', '.join(entries)}; a subtask is whole tasks, or "
                    "classes of one task: split it"
                )
        return subtasks

    @model_validator(mode="after")
    def _law_fits(self) -> "PruningConfig":
        count = len(self.subtasks)
        if self.law == "exact" and count > MOST_ENUMERATED:
            raise ValueError(
                f"law 'exact' runs all {2**count - 1} unions of {count} subtasks at every step; "
                f"with more than {MOST_ENUMERATED} subtasks use 'stratified'"
            )
        if self.law == "basis_only" and self.weighting == "importance":
            raise ValueError(
                "law 'basis_only' never draws most unions, so no weights make up for them; use "
                "law 'stratified' or weighting 'equal'"
            )
        return self
