"""A training step of the quickstart's model: our engines against a bare PyTorch loop.

All eight tasks take turns, on ready tensors of the sizes that the quickstart has. The bare loop is
forward, cross-entropy, backward, clip_grad_norm_ and torch's fused AdamW over all parameters. One
process, one thread; times are the process's CPU time, which a busy machine disturbs least.

    python tests/benchmarks/bench_step.py [--repeats 7]
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmtrain.engines import EngineConfig, build_engine
from mmtrain.losses import cross_entropy
from mmtrain.models.model import MultiTaskModel, TaskSpec, build_model
from mmtrain.recipes.multimodel import quickstart
from mmtrain.step.rates import step_rates
from pipelines.task import Task

RECIPE = quickstart()
Tensors = dict[str, Tensor]


def build() -> MultiTaskModel:
    specs = [
        TaskSpec(
            name=task.name,
            input_net=task.inputs.net,
            output_net=task.targets.net,
            num_outputs=task.targets.num_outputs,
            command_id=2 if task.command else None,
        )
        for task in RECIPE.tasks.values()
    ]
    return build_model(RECIPE.model, specs, seed=0)


def ready_tensors(task: Task) -> Tensors:
    """A batch of the quickstart's size: its usual lengths, random values."""
    net = task.inputs.net
    size, length = {"spectral": (36, 90), "image": (36, 0)}.get(net, (48, 16))
    if net == "image":
        side = 32 if task.command is None else 48
        inputs, length = torch.randint(0, 255, (size, side, side, 1)), side
    elif net == "spectral":
        inputs = torch.randn(size, length, 32)
    else:
        inputs = torch.randint(10, 1500, (size, length))
    targets = torch.randint(10, 1500, (size, 20)) if task.command else torch.arange(size) % 10
    return {
        "inputs": inputs,
        "input_lengths": torch.full((size,), length),
        "targets": targets if task.command else targets[:, None],
    }


def engine_steps(config: EngineConfig, batches: Mapping[str, Tensors]) -> Callable[[], None]:
    """Steps of all tasks by an engine, as the train loop takes them."""
    model = build()
    owners = {task: model.owners(task) for task in batches}
    engine = build_engine(config, model=model, optimizer=RECIPE.optimizer)

    def run() -> None:
        for task, tensors in batches.items():
            outputs = engine.forward(task=task, **tensors)
            smoothing = RECIPE.tasks[task].label_smoothing
            loss = cross_entropy(outputs.logits, tensors["targets"], label_smoothing=smoothing)
            engine.backward(loss.total / tensors["targets"].numel() + outputs.auxiliary_loss)
            part = {task: RECIPE.tasks[task]}
            rates = step_rates(
                RECIPE.optimizer, step=200, num_steps=2400, tasks=part, owners=owners
            )
            assert (
                engine.step(rates.learning_rates, learning_rates=rates.learning_rates).gradient_norm
                > 0
            )

    return run


def bare_steps(batches: Mapping[str, Tensors]) -> Callable[[], None]:
    """The same steps in a loop that anyone would write."""
    model, settings = build(), RECIPE.optimizer
    adam = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=settings.betas, fused=True
    )

    def run() -> None:
        for task, tensors in batches.items():
            outputs = model(task=task, **tensors)
            loss = functional.cross_entropy(
                outputs.logits.flatten(0, -2),
                tensors["targets"].flatten(),
                label_smoothing=RECIPE.tasks[task].label_smoothing,
            )
            (loss + outputs.auxiliary_loss).backward()
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            adam.step()
            adam.zero_grad()

    return run


def medians(runs: Mapping[str, Callable[[], None]], *, repeats: int) -> dict[str, float]:
    """Median CPU milliseconds of a step by contender, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            began = time.process_time()
            run()
            if repeat:  # the first round warms up
                times[name].append((time.process_time() - began) / len(RECIPE.tasks) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Prints one line for each engine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    batches = {name: ready_tensors(task) for name, task in RECIPE.tasks.items()}
    found = medians(
        {
            "bare": bare_steps(batches),
            "torch": engine_steps(EngineConfig(name="torch"), batches),
            "deepspeed": engine_steps(EngineConfig(zero_stage=1), batches),
        },
        repeats=repeats,
    )
    for name in ("torch", "deepspeed"):
        line = {
            "name": f"step_{name}_against_bare_loop",
            "ours": round(found[name], 2),
            "peer": round(found["bare"], 2),
            "ratio": round(found[name] / found["bare"], 3),
            "unit": "CPU ms a step",
            "better": "lower",
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
