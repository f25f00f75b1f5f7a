"""A task: where its raw examples are, what its arrays hold, how it is trained and measured.

One `Task` value says everything about a task; adding one touches no other file. It is plain data:
it prints, pickles, and goes to JSON and back.
"""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipelines.modalities import AnyFeature
from pipelines.names import Name

Split = Literal["train", "validation", "test", "test_hard"]


class Source(BaseModel):
    """Raw examples on a file system that fsspec can open.

    The files of a split are at `uri/split`: a folder or a file with the format's usual suffix.
    `readers.py` holds one function for each format and says what its files look like.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str = Field(description="Folder of the corpus; relative paths are under the data folder.")
    format: Name = Field(description="Of pipelines/readers.py, or my_formats.py:MY_FORMAT.")
    splits: tuple[Split, ...] = Field(
        default=("train", "validation", "test"), description="Splits there."
    )
    options: dict[str, str] = Field(
        default={}, description="Reader options, e.g. which column is input."
    )
    maker: Name | None = Field(
        default=None,
        description="Module that makes the corpus: of pipelines/corpora, or my_maker.py; None: it "
        "is there.",
    )


class Augmentation(BaseModel):
    """A random change of a training example, drawn anew in each epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = Field(description="Of pipelines/augmentations.py, or my_augmentations.py:MyClass.")
    settings: dict[str, float] = Field(default={}, description="Its keyword arguments.")


class Task(BaseModel):
    """One task. Inputs and targets are one array each; a task's loss is its head's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Lower-case words joined by underscores; unique in a run.")
    source: Source
    inputs: AnyFeature
    targets: AnyFeature
    command: str | None = Field(
        default=None,
        description="Command token that starts decoding, e.g. 'to_english'; None: no decoder.",
    )
    metrics: tuple[Name, ...] = Field(
        min_length=1,
        description="Of mmtrain/evaluate/metrics.py, or your own; the first is the task's own.",
    )
    baseline: Name = Field(
        description="Of mmtrain/evaluate/baselines.py, or your own: the trivial predictor to beat."
    )
    batch_size: int | None = Field(default=None, ge=1, description="Examples of a global batch.")
    batch_tokens: int | None = Field(
        default=None,
        ge=1,
        description="In place of batch_size: tokens of both sides of a batch, padding included.",
    )
    batch_multiple: int = Field(
        default=12,
        ge=1,
        description="Token-budget batches hold a multiple of it, so that 1, 2, 3, 4 ranks share.",
    )
    bucket_bounds: tuple[int, ...] = Field(
        default=(),
        description="Length buckets for batch_tokens: upper bounds, in tokens of the longer side.",
    )
    loss: Name | None = Field(
        default=None, description="Of mmtrain/losses/, or your own; None: the one of the targets."
    )
    loss_weight: float = Field(default=1.0, gt=0, description="Multiplies the task's loss.")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Probability shared by the wrong labels."
    )
    augment: tuple[Augmentation, ...] = Field(
        default=(), description="What is done to a training example each time it is read, in order."
    )
    mixup: float = Field(
        default=0.0, ge=0, description="Alpha of Beta(alpha, alpha) of mixup; 0: none."
    )
    drop_layer: float = Field(
        default=0.0, ge=0, lt=1, description="Stochastic depth: share dropped of the last layer."
    )
    num_steps: int | None = Field(
        default=None, ge=1, description="U_j: steps of the task's own run; its rate in a schedule."
    )
    learning_rate: float | None = Field(
        default=None, gt=0, description="Of the task's own run; None: the optimizer's."
    )
    warmup_steps: int | None = Field(
        default=None, ge=0, description="Of the task's own run; None: the optimizer's."
    )
    betas: tuple[float, float] | None = Field(
        default=None, description="Decay of Adam's moments at its steps; None: the optimizer's."
    )
    momentum: float | None = Field(
        default=None, ge=0, lt=1, description="Of SGD at its steps; None: the optimizer's."
    )
    head_init: Literal["zeros", "lecun_normal"] | None = Field(
        default=None,
        description="Weights of its head's last layer at the start; None: as its net is set.",
    )

    @field_validator("name")
    @classmethod
    def _name_is_plain(cls, name: str) -> str:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"task name {name!r}: use lower-case letters, digits and underscores")
        return name
