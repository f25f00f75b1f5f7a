"""What PolyViT's design choices do at a small scale: schedules, and how much is shared.

Every run goes the same way as `mmtrain train`: the corpora's stream, the main loop, the bundle,
`evaluate`. Rows are means over seeds; a score is the task's own metric on its test split. The cost
of a row is CPU time of the training process, one thread, which other work disturbs little.

    schedules   the five orders of the same mini-batches, all tasks in one model
    sharing     a net for each task, one for each modality, one for all with half of the blocks
                each modality's own, one for all

    python -m tests.benchmarks.study_polyvit --out runs/study [--seeds 3] [--share 1.0]

A run that is there is not repeated. Writes `study.json` and `study.md`.
"""

import argparse
import concurrent.futures
import json
import logging
import multiprocessing
import shutil
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
import torch

from mmtrain.engines import EngineConfig
from mmtrain.evaluate.evaluate import evaluate_model
from mmtrain.files import BUNDLE
from mmtrain.models import polyvit
from mmtrain.recipe import Recipe, load_recipe
from mmtrain.run.job import Job
from mmtrain.run.prepare import prepare_run
from mmtrain.store.config import TrackingConfig
from mmtrain.train import train_worker
from pipelines.build import build
from pipelines.schedule import run_steps

SCHEDULES = ("weighted", "alternating", "uniform", "task_by_task", "accumulating")
PROCESSES = 2
LOGICAL_CPUS = 8


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of the study: row of the table, the recipe, what tells it from the row's others."""

    row: str
    part: str
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """Folder of the run."""
        return f"{self.row}-{self.part}-{self.seed}".replace(" ", "_")


def base_recipe(share: float) -> Recipe:
    """`polyvit_tiny` in one process, its tasks' steps and warm-ups times `share`."""
    recipe = load_recipe("polyvit_tiny")
    tasks = {
        name: task.model_copy(
            update={
                "num_steps": max(1, round((task.num_steps or 1) * share)),
                "warmup_steps": round((task.warmup_steps or 0) * share),
            }
        )
        for name, task in recipe.tasks.items()
    }
    return whole(
        recipe.with_(
            tasks=tasks,
            engine=EngineConfig(name="torch"),
            num_workers=1,
            validate_every=0,
            save_every=10**9,
        )
    )


def whole(recipe: Recipe) -> Recipe:
    """The recipe with as many steps as its tasks' own runs have together."""
    steps = run_steps(recipe.tasks.values(), config=recipe.schedule)
    return recipe.with_(num_steps=steps)


def schedule_trials(base: Recipe, *, seed: int) -> list[Trial]:
    """All tasks in one model, in each order."""
    trials = []
    for name in SCHEDULES:
        schedule = base.schedule.model_copy(update={"name": name})
        recipe = whole(base.with_(schedule=schedule, seed=seed))
        trials.append(Trial(name, "all", seed, recipe))
    return trials


def sharing_trials(base: Recipe, *, seed: int) -> list[Trial]:
    """A net a task, a net a modality, half of the blocks a modality's own; all weighted."""
    base = base.with_(seed=seed)
    body = cast(polyvit.Config, base.model.body)
    half = body.model_copy(update={"num_adapter_blocks": body.num_layers // 2})
    apart = base.with_(model=base.model.model_copy(update={"body": half}))
    alone = [Trial("a net a task", name, seed, whole(base.only([name]))) for name in base.tasks]
    kinds = sorted({task.inputs.modality for task in base.tasks.values()})
    by_modality = [
        Trial(
            "a net a modality",
            kind,
            seed,
            whole(base.only([n for n, t in base.tasks.items() if t.inputs.modality == kind])),
        )
        for kind in kinds
    ]
    return [*alone, *by_modality, Trial("half of the blocks own", "all", seed, apart)]


def run_trial(trial: Trial, *, out: Path, data_dir: Path, address: str) -> dict[str, Any]:
    """Trains and measures; what was found stands in `<out>/<name>.json`."""
    path, folder = out / f"{trial.name}.json", out / trial.name
    if path.exists():
        return json.loads(path.read_text())
    torch.set_num_threads(1)
    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    shutil.rmtree(folder, ignore_errors=True)
    prepare_run(trial.recipe, out=folder, data_dir=data_dir, resume=False)
    tracking = TrackingConfig(uri=f"sqlite:///{out}/mlruns.db")
    job = Job(trial.recipe.model_dump_json(), folder, data_dir, tracking, run_id=None)
    began = time.process_time()
    train_worker(job, lambda _: None)
    seconds = time.process_time() - began
    results = evaluate_model(folder / BUNDLE, data_dir=data_dir)
    found = {
        "row": trial.row,
        "part": trial.part,
        "seed": trial.seed,
        "seconds": seconds,
        "steps": trial.recipe.num_steps,
        "parameters": results.totals.num_parameters,
        "scores": {name: task.value for name, task in results.tasks.items()},
        "baselines": {name: task.baseline for name, task in results.tasks.items()},
        "metrics": {name: task.label for name, task in results.tasks.items()},
    }
    path.write_text(json.dumps(found))
    shutil.rmtree(folder)
    print(f"# {trial.name}: {seconds:.0f} s", flush=True)
    return found


def table(found: Sequence[Mapping[str, Any]], *, rows: Iterable[str]) -> str:
    """Markdown: a row's mean score of each task with its deviation over seeds, its cost."""
    tasks = list(next(x for x in found if x["part"] == "all")["scores"])
    metrics = {name: label for x in found for name, label in x["metrics"].items()}
    baselines = {name: value for x in found for name, value in x["baselines"].items()}
    heads = [f"`{task}` {metrics[task]}" for task in tasks]
    lines = [f"| | {' | '.join(heads)} | mean | parameters | CPU s |"]
    lines.append("|---" * (len(tasks) + 4) + "|")
    lines.append(f"| trivial | {' | '.join(f'{baselines[t]:.1f}' for t in tasks)} | | | |")
    for row in rows:
        own = [x for x in found if x["row"] == row]
        seeds = sorted({x["seed"] for x in own})
        by_task = {t: [x["scores"][t] for x in own if t in x["scores"]] for t in tasks}
        cells = [_mean_and_deviation(by_task[task]) for task in tasks]
        mean = statistics.mean(statistics.mean(by_task[task]) for task in tasks)
        parameters = sum(x["parameters"] for x in own) // len(seeds)
        seconds = sum(x["seconds"] for x in own) / len(seeds)
        cost = f"{mean:.1f} | {parameters:,} | {seconds:.0f}"
        lines.append(f"| {row} | {' | '.join(cells)} | {cost} |")
    return "\n".join(lines)


def _mean_and_deviation(values: Sequence[float]) -> str:
    spread = f" ({statistics.stdev(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--data", type=Path, default=Path("corpora"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of the tasks' own steps")
    chosen = parser.parse_args()
    out, data_dir = chosen.out.absolute(), chosen.data.absolute()
    out.mkdir(parents=True, exist_ok=True)
    ray.init(num_cpus=LOGICAL_CPUS, include_dashboard=False, logging_level=logging.ERROR)
    base = base_recipe(chosen.share)
    build(list(base.tasks.values()), data_dir=data_dir, config=base.build)
    trials = [
        trial
        for seed in range(chosen.seeds)
        for trial in (*schedule_trials(base, seed=seed), *sharing_trials(base, seed=seed))
    ]
    with concurrent.futures.ProcessPoolExecutor(
        PROCESSES, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        address = ray.get_runtime_context().gcs_address
        calls = [
            pool.submit(run_trial, trial, out=out, data_dir=data_dir, address=address)
            for trial in trials
        ]
        found = [call.result() for call in calls]
    rows = [*SCHEDULES, "a net a task", "a net a modality", "half of the blocks own"]
    (out / "study.json").write_text(json.dumps(found, indent=1))
    (out / "study.md").write_text(table(found, rows=rows) + "\n")
    print((out / "study.md").read_text())


if __name__ == "__main__":
    main()
