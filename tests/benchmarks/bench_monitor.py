"""What sampling the tasks' gradients costs, at polyvit_tiny's sizes.

Steps of one task, alternately watched and not, on one thread; CPU time, medians. Every N steps
of a task one is watched, so that a run is longer by the extra of one step over N steps.

    python tests/benchmarks/bench_monitor.py [--repeats 40] [--every 20]
"""

import argparse
import json
import statistics
import time

import torch

from mmtrain.engines import EngineConfig, build_engine
from mmtrain.losses import cross_entropy
from mmtrain.models.config import net_of
from mmtrain.models.model import TaskSpec, build_model
from mmtrain.recipe import load_recipe
from mmtrain.step.gradient_monitor import GradientMonitor
from mmtrain.step.rates import step_rates

RECIPE = load_recipe("polyvit_tiny")


def measure(task_name: str, *, repeats: int) -> tuple[float, float]:
    """Median CPU seconds of a step that is not watched, and of one that is."""
    task = RECIPE.tasks[task_name]
    spec = TaskSpec(
        name=task_name,
        input_net=net_of(RECIPE.model.family, task.inputs),
        output_net=net_of(RECIPE.model.family, task.targets),
        num_outputs=task.targets.num_outputs,
    )
    model = build_model(RECIPE.model, [spec], seed=0)
    monitor = GradientMonitor(model, tasks=(task_name,), every=2, seed=0)
    engine = build_engine(EngineConfig(name="torch"), model=model, optimizer=RECIPE.optimizer)
    owners = {task_name: model.owners(task_name)}
    size = task.batch_size or 32
    feature = task.inputs
    inputs = torch.rand(size, feature.height, feature.width, feature.channels) * 255  # type: ignore[attr-defined]  # an image's
    lengths, labels = torch.full((size,), inputs.shape[1]), torch.arange(size)[:, None] % 10
    seconds: tuple[list[float], list[float]] = ([], [])
    for step in range(2 * repeats + 4):
        began = time.process_time()
        outputs = engine.forward(task=task_name, inputs=inputs, input_lengths=lengths, targets=None)
        loss = cross_entropy(outputs.logits, labels)
        with monitor.watching(task_name, ordinal=step + 1):
            engine.backward(loss.total / size)
        monitor.end_step()
        assert (monitor.point() is None) == (step % 2 == 0)
        rates = step_rates(
            RECIPE.optimizer, step=step, num_steps=10**6, tasks={task_name: task}, owners=owners
        )
        engine.step(rates.learning_rates, learning_rates=rates.learning_rates)
        seconds[step % 2].append(time.process_time() - began)
    return statistics.median(seconds[0][2:]), statistics.median(seconds[1][2:])


def main() -> None:
    """Prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--task", default="digit")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plain, watched = measure(arguments.task, repeats=arguments.repeats)
    run = plain + (watched - plain) / arguments.every
    line = {
        "name": f"training with gradients sampled every {arguments.every} steps",
        "ours": round(run * 1e3, 3),
        "peer": round(plain * 1e3, 3),
        "unit": "ms a step",
        "ratio": round(run / plain, 4),
        "better": "lower",
        "watched_step": round(watched / plain, 4),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
