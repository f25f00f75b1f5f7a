"""A run that learns masks, in the steps of the train loop, without Ray and without corpora.

As a program it is one rank of a small process group, which runs a list of jobs and writes what it
saw as JSON:    python -m tests.mmtrain.step.masked_run RANK WORLD_SIZE STORE OUT JOBS...
"""

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mmtrain import checkpoint
from mmtrain.checkpoint import Progress
from mmtrain.engines import EngineConfig, build_engine
from mmtrain.engines.optim import OptimizerConfig
from mmtrain.engines.ranks import Ranks, seed_step
from mmtrain.masks.config import PruningConfig
from mmtrain.modalities import image_patches
from mmtrain.models import polyvit, resnet
from mmtrain.models.model import ModelConfig, MultiTaskModel, TaskSpec, build_model
from mmtrain.recipe import Recipe
from mmtrain.run.components import build_objective
from mmtrain.step.gradients import build_gradients
from mmtrain.step.objective import Objective
from mmtrain.step.passes import Passes
from mmtrain.step.rates import step_rates
from pipelines.batch import Batch
from pipelines.modalities.image import ImageFeature
from pipelines.modalities.label import LabelFeature
from pipelines.task import Source, Task

SIZE = 12  # examples of a global batch
CLASSES = tuple("abcd")
NETS: dict[str, Any] = {
    "image_patches": image_patches.Config(height=16, width=16, channels=1, patch=(8, 8))
}
PRUNING = PruningConfig(
    subtasks={
        "ab": ("shape:a", "shape:b"),
        "c": ("shape:c",),
        "d": ("shape:d",),
        "shade": ("shade",),
    },
    sigma=0.5,
    gamma=0.1,
    learning_rate_scale=3.0,
)
ENGINES = {
    "torch": EngineConfig(name="torch"),
    "recomputed": EngineConfig(name="torch", activation_checkpointing=True),
    "torch_bf16": EngineConfig(name="torch", precision="bf16"),
    "zero0": EngineConfig(zero_stage=0),
    "zero1": EngineConfig(zero_stage=1),
    "zero2": EngineConfig(zero_stage=2),
    "zero2_ep2": EngineConfig(zero_stage=2, ep_size=2),
    "zero2_bf16": EngineConfig(zero_stage=2, precision="bf16"),
}


def task(name: str, *, loss: str | None, classes: tuple[str, ...]) -> Task:
    return Task(
        name=name,
        source=Source(uri="raw/none", format="image_folder"),
        inputs=ImageFeature(height=16, width=16, channels=1),
        targets=LabelFeature(classes=classes),
        metrics=("accuracy",),
        baseline="majority_class",
        batch_size=SIZE,
        loss=loss,
    )


TASKS = (
    task("shape", loss="sigmoid_cross_entropy", classes=CLASSES),
    task("shade", loss=None, classes=("dark", "light")),
    task("spare", loss=None, classes=("x", "y", "z")),
)


def polyvit_body(**fields: Any) -> polyvit.Config:
    sizes = {"model_dim": 16, "num_layers": 2, "num_heads": 4, "mlp_dim": 24}
    return polyvit.Config(**{**sizes, **fields})


def recipe_of(
    *,
    engine: str = "torch",
    body: Any = None,
    pruning: PruningConfig | None = PRUNING,
    **fields: Any,
) -> Recipe:
    """Two tasks of pictures, one of them divided into classes; a third where it is asked for."""
    body = body or polyvit_body()
    family = "resnet" if isinstance(body, resnet.Config) else "polyvit"
    tasks = {known.name: known for known in TASKS[:2]}
    settings = {
        "name": "masked",
        "tasks": tasks,
        "model": ModelConfig(family=family, body=body, nets={} if family == "resnet" else NETS),
        "optimizer": OptimizerConfig(
            learning_rate=1e-2, schedule="constant", warmup_steps=0, weight_decay=0.01
        ),
        "engine": ENGINES[engine],
        "pruning": pruning,
        "num_steps": 100,
    }
    return Recipe.model_validate({**settings, **fields})


def model_of(recipe: Recipe) -> MultiTaskModel:
    """The recipe's model, its heads as if it had learned a little: fresh ones are zero."""
    net = "image_pixels" if recipe.model.family == "resnet" else "image_patches"
    specs = [
        TaskSpec(
            name=known.name, input_net=net, output_net="linear",
            num_outputs=known.targets.num_outputs, loss=known.loss or known.targets.loss,
        )
        for known in recipe.tasks.values()
    ]  # fmt: skip
    model = build_model(recipe.model, specs, seed=recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    for weight in model.heads.parameters():
        weight.data += 0.3 * torch.randn(weight.shape, generator=generator)
    return model


def passes_of(recipe: Recipe, model: MultiTaskModel) -> Passes:
    return Passes.build(recipe.pruning, model, tasks=recipe.tasks, seed=recipe.seed)


def micro_of(recipe: Recipe, *, step: int, rank: int = 0, world_size: int = 1) -> Batch:
    """A rank's part of the batch of a step; tasks take turns."""
    known = tuple(recipe.tasks.values())[step % len(recipe.tasks)]
    rng = np.random.default_rng((step, 1))
    pictures = rng.integers(0, 255, (SIZE, 16, 16, 1)).astype(np.uint8)
    classes = rng.integers(0, known.targets.num_outputs or 1, (SIZE, 1)).astype(np.int32)
    rows = slice(rank, None, world_size)
    size = len(classes[rows])
    return Batch(
        step=step, micro=0, task=known.name,
        inputs=pictures[rows], input_lengths=np.full(size, 16, np.int32),
        targets=classes[rows], target_lengths=np.ones(size, np.int32),
        example_ids=np.arange(SIZE)[rows],
    )  # fmt: skip


@dataclass(frozen=True)
class MaskedRun:
    """A recipe with its model, taken over by its engine."""

    recipe: Recipe
    model: MultiTaskModel
    passes: Passes
    engine: Any
    ranks: Ranks

    @classmethod
    def build(cls, recipe: Recipe, *, moved: float = 0.0) -> "MaskedRun":
        model = model_of(recipe)
        passes = passes_of(recipe, model)
        for parameter in model.parameters():
            parameter.data += moved
        return cls.of(recipe, passes)

    @classmethod
    def of(cls, recipe: Recipe, passes: Passes) -> "MaskedRun":
        """A run that trains what `passes` pass through."""
        model = passes.model.train()
        engine = build_engine(recipe.engine, model=model, optimizer=recipe.optimizer)
        return cls(recipe, model, passes, engine, Ranks.current(use_gpu=False))

    def train(self, *, first: int, last: int) -> list[dict[str, Any]]:
        """Steps [first, last): each step's loss over ranks, gradient norm and unions."""
        gradients = build_gradients(self.recipe.balancing, engine=self.engine, seed=0)
        return [self.step(step, gradients) for step in range(first, last)]

    def step(self, step: int, gradients: Any) -> dict[str, Any]:
        seed_step(self.recipe.seed, step, self.ranks.rank)
        rank, world_size = self.ranks.rank, self.ranks.world_size
        micros = [micro_of(self.recipe, step=step, rank=rank, world_size=world_size)]
        rates = self.rates(step)
        num_targets = self.objective.count_targets(micros)
        total, unions = torch.zeros(()), []
        for micro, drawn in self.passes.each(micros):
            with self.passes.masked(drawn):
                share = self.objective.micro_loss(
                    self.engine, micro, num_targets=num_targets, rates=rates, masked=drawn
                ).share
                gradients.add(micro.task, share)
            total += share.detach()
            unions.append(drawn.subtasks)
        gradients.finish(step)
        if world_size > 1:
            dist.all_reduce(total)
        stats = self.engine.step(rates.learning_rates, learning_rates=rates.learning_rates)
        return {"loss": float(total), "norm": stats.gradient_norm, "unions": unions}

    @property
    def objective(self) -> Objective:
        return build_objective(self.recipe, self.ranks)

    def rates(self, step: int) -> Any:
        task = micro_of(self.recipe, step=step).task
        return step_rates(
            self.recipe.optimizer,
            step=step,
            num_steps=self.recipe.num_steps,
            tasks={task: self.recipe.tasks[task]},
            owners={task: self.model.owners(task)},
            scales=self.passes.scales,
        )

    def digests(self) -> dict[str, str]:
        """SHA-256 of each tensor of this rank's part, with the steps that it took."""
        return {
            f"{state.name}/{key}": f"{state.step} {digest(value)}"
            for state in self.engine.parameter_states()
            for key, value in state.tensors.items()
        }


def digest(value: Tensor) -> str:
    return hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()


# ---- jobs of a rank


def straight(engine: str, body: str, folder: str) -> dict[str, Any]:
    """4 steps, a checkpoint, 4 more."""
    run = MaskedRun.build(recipe_of(engine=engine, body=BODIES[body]))
    trace = run.train(first=0, last=4)
    checkpoint.save(folder, engine=run.engine, progress=Progress(step=4))
    trace += run.train(first=4, last=8)
    digests = run.digests()
    weights = {name: value.tolist() for name, value in run.engine.model_state().items()}
    return {"trace": trace, "digests": digests, "weights": weights}


def resumed(engine: str, body: str, folder: str) -> dict[str, Any]:
    """The last 4 of these steps from the checkpoint; the weights and masks start elsewhere."""
    run = MaskedRun.build(recipe_of(engine=engine, body=BODIES[body]), moved=0.5)
    ref = checkpoint.latest(folder)
    assert ref is not None
    progress = checkpoint.restore(ref, engine=run.engine)
    return {"trace": run.train(first=progress.step, last=8), "digests": run.digests()}


BODIES = {
    "vit": polyvit_body(),
    "experts": polyvit_body(
        experts="every_second",
        num_experts=4,
        active_experts=2,
        expert_dim=8,
        gate_noise="none",
        balance_weight=0.0,
    ),
    "norms": resnet.Config(channels=1, depth=8, widths=(4, 6, 8)),
}


def main() -> None:
    rank, world_size, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size
        )
    results = {}
    for job in sys.argv[5:]:
        name, *arguments = job.split(",")
        results[job] = globals()[name](*arguments)
    Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
