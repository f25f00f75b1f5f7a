"""Memory that `mmtrain plan` foretells against what real training steps take.

Measured is the most that torch's CPU allocator has given out at once, from building the model to
the end of the second step, without interpreter and libraries: the profiler sees every allocation
of tensors, inside operations too. Batches are of the sizes that the plan is of. Recipes are cut
down to what fits in a minute; the last ones run as two DeepSpeed ranks over gloo.

    python tests/benchmarks/bench_plan.py [NAME ...]
"""

import argparse
import json
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.profiler import ProfilerActivity, profile, record_function

from mmtrain.engines import build_engine
from mmtrain.engines.ranks import Ranks
from mmtrain.models.model import build_model
from mmtrain.planning.estimate import plan_run
from mmtrain.planning.footprint import planned_specs
from mmtrain.planning.longest import longest_batches, zeros
from mmtrain.recipe import Recipe, load_recipe, override
from mmtrain.run.components import build_objective, run_optimizer
from mmtrain.run.model import fitted
from mmtrain.step.passes import Passes
from mmtrain.step.rates import step_rates

NOWHERE = Path("/nowhere")
TORCH = ('engine={"name": "torch"}', "num_workers=1")
START = "mmtrain: the model is built"


@dataclass(frozen=True)
class Case:
    """A recipe with few tasks and small batches."""

    recipe: str
    tasks: tuple[str, ...]
    settings: tuple[str, ...]
    batch_size: int

    def load(self) -> Recipe:
        recipe = override(load_recipe(self.recipe).only(self.tasks), self.settings)
        batch = {"batch_size": self.batch_size, "batch_tokens": None, "bucket_bounds": ()}
        tasks = {name: task.model_copy(update=batch) for name, task in recipe.tasks.items()}
        return recipe.model_copy(update={"tasks": tasks})


def zero(stage: int, *more: str) -> tuple[str, ...]:
    return (f'engine={{"name": "deepspeed", "zero_stage": {stage}}}', "num_workers=2", *more)


CASES = {
    "multimodel_torch": Case("quickstart", ("speech_recognition",), TORCH, 12),
    "polyvit_torch": Case("polyvit_tiny", ("digit_mask", "motion_identity"), TORCH, 16),
    "polyvit_torch_bf16": Case(
        "polyvit_tiny", ("motion_identity",), (*TORCH, "engine.precision=bf16"), 16
    ),
    "polyvit_torch_recomputing": Case(
        "polyvit_tiny", ("motion_identity",), (*TORCH, "engine.activation_checkpointing=true"), 32
    ),
    "resnet_masks_torch": Case("san_resnet", ("small_digits",), TORCH, 32),
    "multimodel_wide_torch": Case(
        "quickstart", ("image_classification",), (*TORCH, "model.body.expert_dim=1536"), 4
    ),
    "polyvit_zero1": Case("polyvit_tiny", ("digit", "digit_mask"), zero(1), 16),
    "polyvit_zero2_bf16": Case(
        "polyvit_tiny", ("digit", "digit_mask"), zero(2, "engine.precision=bf16"), 16
    ),
    "polyvit_wide_zero2": Case("polyvit_tiny", ("digit",), zero(2, "model.body.mlp_dim=3072"), 4),
    "polyvit_wide_zero3": Case("polyvit_tiny", ("digit",), zero(3, "model.body.mlp_dim=3072"), 4),
    "multimodel_zero1_experts": Case(
        "quickstart", ("image_classification",), zero(1, "engine.ep_size=2"), 8
    ),
}


def planned_bytes(recipe: Recipe) -> int:
    memory = plan_run(recipe, data_dir=NOWHERE).layouts[0].memory
    assert memory is not None
    return memory.total


def train_steps(recipe: Recipe, *, rank: int, world_size: int) -> None:
    """Two rounds of a step of each task, as the train loop takes them."""
    ranks = Ranks(rank, world_size, torch.device("cpu"))
    model = build_model(fitted(recipe), planned_specs(recipe), seed=0)
    passes = Passes.build(recipe.pruning, model, tasks=recipe.tasks, seed=recipe.seed)
    optimizer, objective = run_optimizer(recipe), build_objective(recipe, ranks)
    owners = {task: model.owners(task) for task in recipe.tasks}
    engine = build_engine(recipe.engine, model=model, optimizer=optimizer)
    with record_function(START):
        pass
    for step in range(2):
        for name, task in recipe.tasks.items():
            batch = longest_batches(task, None)[0]
            micro = zeros(batch, task, size=batch.size // world_size)
            if task.targets.num_outputs is None:
                micro.targets[:] = 2
            rates = step_rates(
                optimizer, step=step, num_steps=9, tasks={name: task}, owners=owners,
                scales=passes.scales,
            )  # fmt: skip
            count = {name: torch.ones(())}
            for drawn in passes.of_task(name, step=step):
                with passes.masked(drawn):
                    made = objective.micro_loss(
                        engine, micro, num_targets=count, rates=rates, masked=drawn
                    )
                    engine.backward(made.share)
                    del made
            engine.step(rates.learning_rates, learning_rates=rates.learning_rates)


def measured_bytes(recipe: Recipe, *, rank: int = 0, world_size: int = 1) -> int:
    """The most that tensors took at once in this process, after the engine was built."""
    cpu = [ProfilerActivity.CPU]
    with profile(activities=cpu, profile_memory=True, acc_events=True) as seen:
        train_steps(recipe, rank=rank, world_size=world_size)
    events: Any = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [(e.start_ns(), e.nbytes(), e.name()) for e in events]
    alive = most = 0
    for _, num_bytes, name in sorted(changes, key=lambda change: change[0]):
        if name == START:
            most = alive
        elif name == "[memory]":
            alive += num_bytes
            most = max(most, alive)
    inputs = [longest_batches(task, None)[0] for task in recipe.tasks.values()]
    tasks = recipe.tasks
    largest = max(  # arrays of the stream are not torch's
        micro.inputs.nbytes + micro.targets.nbytes
        for micro in (zeros(b, tasks[b.task], size=b.size // world_size) for b in inputs)
    )
    return most + largest


def _rank(rank: int, case: Case, port: int, queue: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    queue.put(measured_bytes(case.load(), rank=rank, world_size=2))
    dist.barrier()


def measured_on_ranks(case: Case) -> int:
    """The rank that takes most."""
    queue = mp.get_context("spawn").SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_rank, args=(case, port, queue), nprocs=2)  # type: ignore[attr-defined]
    return max(queue.get(), queue.get())


def compare(names: list[str]) -> Iterator[dict[str, object]]:
    for name in names:
        recipe = CASES[name].load()
        ours = planned_bytes(recipe)
        several = recipe.num_workers > 1
        peer = measured_on_ranks(CASES[name]) if several else measured_bytes(recipe)
        yield {
            "name": f"plan_memory_{name}",
            "ours": round(ours / 1e6, 2),
            "peer": round(peer / 1e6, 2),
            "ratio": round(ours / peer, 3),
            "unit": "MB of tensors, planned against measured (1 is best)",
            "better": "lower",
        }


def main() -> None:
    """Prints one line for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="; ".join(CASES))
    chosen = parser.parse_args().names or list(CASES)
    torch.set_num_threads(1)
    for line in compare(chosen):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
