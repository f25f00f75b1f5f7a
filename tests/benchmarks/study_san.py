"""What subtask-adaptive networks are worth at a small scale: operations kept, and quality.

Networks are trained as `mmtrain train` does it: the corpora's stream, the main loop, the bundle.
Then each union of subtasks is cut out and measured on the test split's examples of its classes,
the answer chosen among these. Digits have five subtasks of two classes; the unions of k subtasks
are the five that follow one another around the circle. Rows are means over unions and seeds.

    price          five gammas
    ways           at one gamma: the cut network against others of as many operations
    ablations      at the same gamma: without scaling masks, without beta, without recalibration
    transformers   PolyViT and MultiModel, three tasks each: single tasks, pairs, all

    python -m tests.benchmarks.study_san --out runs/san [--seeds 2] [--share 0.5]

A run that is there is not repeated. Writes `study.json` and `study.md`. Needs the extra `study`.
"""

import argparse
import itertools
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from mmtrain.bundle import load_bundle
from mmtrain.cut.examples import TaskInputs
from mmtrain.cut.pruner import Pruner
from mmtrain.cut.recalibrate import recalibrate
from mmtrain.cut.subset import Subset
from mmtrain.derive.measurement import cost_of, scores, task_inputs
from mmtrain.derive.opened import open_model
from mmtrain.derive.prune import PruneConfig, prune
from mmtrain.derive.subset_corpora import SubsetCorpora
from mmtrain.derive.tradeoff import read_drawn
from mmtrain.engines import EngineConfig
from mmtrain.files import BUNDLE
from mmtrain.models.model import MultiTaskModel
from mmtrain.predict.predictor import Predictor
from mmtrain.recipe import Recipe, load_recipe
from mmtrain.run.job import Job
from mmtrain.run.prepare import prepare_run
from mmtrain.store.config import TrackingConfig
from mmtrain.train import train_worker
from pipelines.build import build
from pipelines.shards import open_manifest, shard_folder
from tests.benchmarks.san_digits import DIGITS, Pictures, cut_by_chance, plain_logits, unions
from tests.benchmarks.san_tables import tables
from tests.benchmarks.static_pruning import pruned_by_magnitude, recalibrate_plain

GAMMAS = (0.02, 0.05, 0.1, 0.3, 1.0)
MIDDLE = 0.1  # gamma of all comparisons
ALONE_STARTS = (0, 2)  # of the five unions of a size, those that a network is trained for alone
BATCHES = 10  # of 64 examples, that batch norms are recalibrated on
LIMIT = 150  # examples of a task of a transformer


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of the study: what it is for, its name, its recipe, and the corpora it trains on."""

    part: str
    name: str
    seed: int
    recipe: Recipe
    corpora: Path

    @property
    def key(self) -> str:
        """Folder of the run."""
        return f"{self.part}-{self.name}-{self.seed}".replace(" ", "_").replace(".", "_")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a study lies: its runs and its corpora."""

    out: Path
    data: Path


def shortened(name: str, *, share: float, seed: int) -> Recipe:
    """A shipped recipe in one process, its steps and warm-up times `share`."""
    recipe = load_recipe(name)
    assert recipe.pruning is not None, "recipes of subtasks have masks"
    warmup = round(recipe.pruning.warmup_steps * share)
    return recipe.with_(
        pruning=recipe.pruning.model_copy(update={"warmup_steps": warmup}),
        engine=EngineConfig(name="torch"),
        num_steps=max(1, round(recipe.num_steps * share)),
        num_workers=1,
        validate_every=0,
        save_every=10**9,
        seed=seed,
    )


def with_pruning(recipe: Recipe, **fields: Any) -> Recipe:
    """The recipe with other settings of its masks."""
    assert recipe.pruning is not None, "the recipe has masks"
    return recipe.with_(pruning=recipe.pruning.model_copy(update=fields))


def digit_trials(place: Place, *, share: float, seed: int) -> list[Trial]:
    """The network with masks at every price, without one part at a time, and without masks."""
    base = shortened("san_resnet", share=share, seed=seed)
    settings: list[tuple[str, str, Recipe]] = [
        ("price", f"{gamma:g}", with_pruning(base, gamma=gamma)) for gamma in GAMMAS
    ]
    middle = with_pruning(base, gamma=MIDDLE)
    settings += [
        ("ablations", "no scaling mask", with_pruning(middle, scaling="off")),
        ("ablations", "beta 1", with_pruning(middle, beta=1.0)),
        ("plain", "no masks", base.with_(pruning=None)),
    ]
    return [Trial(part, name, seed, recipe, place.data) for part, name, recipe in settings]


def train_trial(trial: Trial, *, place: Place) -> float:
    """Trains into the trial's folder; CPU seconds of this process."""
    folder = place.out / trial.key
    shutil.rmtree(folder, ignore_errors=True)
    prepare_run(trial.recipe, out=folder, data_dir=trial.corpora, resume=False)
    tracking = TrackingConfig(uri=f"sqlite:///{place.out}/mlruns.db")
    job = Job(trial.recipe.model_dump_json(), folder, trial.corpora, tracking, run_id=None)
    began = time.process_time()
    train_worker(job, lambda _: None)
    for spent in ("checkpoints", "tracking", "ray"):
        shutil.rmtree(folder / spent, ignore_errors=True)
    return time.process_time() - began


def once(path: Path, find: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What was found and stands in a file; found now if there is none."""
    if not path.exists():
        began = time.process_time()
        found = find()
        path.write_text(json.dumps(found))
        print(f"# {path.stem}: {time.process_time() - began:.0f} CPU s", flush=True)
    return json.loads(path.read_text())


def measure_digits(trial: Trial, *, place: Place) -> list[dict[str, Any]]:
    """Every union cut out of a trained network with masks, and what stands beside it."""
    pruner = Pruner(load_bundle(place.out / trial.key / BUNDLE))
    reader = Predictor(pruner.bundle)
    pictures = Pictures.read(reader, data=place.data)
    rows = []
    for union in unions(pruner.bank.subtasks):
        subset = pruner.subset(union)
        classes, masks = subset.classes[DIGITS], pruner.masks(subset)
        batches = SubsetCorpora(reader, subset=subset, data_dir=place.data).unlabelled(
            num_batches=BATCHES
        )
        small, chance = pruner.cut(subset), cut_by_chance(pruner, subset, masks, seed=trial.seed)
        stale = pictures.accuracy(pictures.logits(small), classes)
        whole = pruner.uncut(subset, masks=pruner.whole_masks())
        for model in (small, chance, whole):
            recalibrate(model, batches)
        first = TaskInputs(DIGITS, batches[0].inputs[:1], batches[0].input_lengths[:1])
        rows.append(
            {
                "part": trial.part,
                "name": trial.name,
                "seed": trial.seed,
                "size": len(union),
                "union": list(union),
                "units": masks.kept_share(),
                "flops": cost_of(small, [first]).flops / cost_of(reader.model, [first]).flops,
                "cut": pictures.accuracy(pictures.logits(small), classes),
                "cut, statistics of training": stale,
                "as many units drawn by chance": pictures.accuracy(
                    pictures.logits(chance), classes
                ),
                "whole": pictures.accuracy(pictures.logits(whole), classes),
            }
        )
    return rows


def measure_static(
    trial: Trial, *, place: Place, shares: Mapping[int, float]
) -> list[dict[str, Any]]:
    """The network without masks pruned by magnitude, to as many operations as each size's cuts."""
    bundle = load_bundle(place.out / trial.key / BUNDLE)
    reader, config = Predictor(bundle), load_recipe("san_resnet").pruning
    assert config is not None, "the recipe has masks"
    model, pictures = reader.model, Pictures.read(reader, data=place.data)
    everything = Subset(tuple(config.subtasks), (DIGITS,))
    batches = SubsetCorpora(reader, subset=everything, data_dir=place.data).unlabelled(
        num_batches=BATCHES
    )
    whole_BV, rows = pictures.logits(model), []
    for size, share in shares.items():
        net = pruned_by_magnitude(model, DIGITS, share=share)
        stale_BV = plain_logits(net, pictures)
        recalibrate_plain(net, batches)
        fresh_BV = plain_logits(net, pictures)
        for union in unions(tuple(config.subtasks)):
            if len(union) == size:
                classes = [int(e.split(":")[1]) for name in union for e in config.subtasks[name]]
                rows.append(
                    {
                        "part": "plain", "name": trial.name, "seed": trial.seed, "size": size,
                        "union": list(union), "flops": share,
                        "plain": pictures.accuracy(whole_BV, classes),
                        "magnitude": pictures.accuracy(fresh_BV, classes),
                        "magnitude, statistics of training": pictures.accuracy(stale_BV, classes),
                    }
                )  # fmt: skip
    return rows


def alone_trials(middle: Trial, *, place: Place) -> list[Trial]:
    """For unions of each size, a network as large as the cut one, trained for them from nothing."""
    opened = open_model(str(place.out / middle.key))
    assert opened.recipe is not None, "a run has its recipe"
    subtasks, trials = opened.bundle.card.pruning, []
    assert subtasks is not None, "the run has masks"
    chosen = unions(tuple(subtasks.subtasks))
    places = [place_ for place_ in range(len(chosen)) if place_ % 5 in ALONE_STARTS]
    for union in (chosen[number] for number in [*places, len(chosen) - 1]):
        name = f"{len(union)} {union[0]}"
        out = place.out / f"cut-{name}-{middle.seed}".replace(" ", "_")
        config = PruneConfig(union, recalibration_batches=0, measures=False)
        pruned = prune(opened, config, out=out, data_dir=place.data, force=out.exists())
        assert pruned.recipe is not None, "the whole model has a recipe"
        recipe = load_recipe(str(pruned.recipe)).with_(init_from=None)
        trials.append(
            Trial("alone", name, middle.seed, recipe, (pruned.corpora or place.data).absolute())
        )
    return trials


def measure_alone(trial: Trial, *, place: Place) -> list[dict[str, Any]]:
    """A network trained for one union, on the examples of its classes."""
    reader = Predictor.load(place.out / trial.key)
    pictures = Pictures.read(reader, data=trial.corpora)
    classes = range(reader.task(DIGITS).spec.num_outputs or 0)
    size, start = trial.name.split()
    found = pictures.accuracy(pictures.logits(reader.model), classes)
    shutil.rmtree(place.out / trial.key)
    return [{"part": "alone", "name": start, "seed": trial.seed, "size": int(size), "alone": found}]


def measure_transformer(trial: Trial, *, place: Place) -> list[dict[str, Any]]:
    """Single tasks, pairs and all tasks cut out of a trained model."""
    pruner = Pruner(load_bundle(place.out / trial.key / BUNDLE))
    reader, rows = Predictor(pruner.bundle), []
    manifests = {
        task: open_manifest(shard_folder(place.data, task=task, split="test"))
        for task in trial.recipe.tasks
    }
    examples = {
        task: read_drawn(place.data, task=task, split="test", limit=LIMIT) for task in manifests
    }

    def score(model: MultiTaskModel, subset: Subset) -> dict[str, float]:
        predictor = Predictor(pruner.part(model, subset=subset), model=model)
        return {
            task: next(
                iter(scores(predictor, manifests[task], examples=examples[task]).values())
            )
            for task in subset.tasks
        }  # fmt: skip

    names = pruner.bank.subtasks
    for size in range(1, len(names) + 1):
        for union in itertools.combinations(names, size):
            subset, masks = pruner.subset(union), pruner.masks(pruner.subset(union))
            small = pruner.cut(subset)
            inputs = [task_inputs(reader, task, examples[task][:1]) for task in subset.tasks]
            row = {
                "part": "transformers", "name": trial.name, "seed": trial.seed,
                "union": list(union), "units": masks.kept_share(),
                "flops": cost_of(small, inputs).flops / cost_of(reader.model, inputs).flops,
                "parameters": cost_of(small, []).parameters / cost_of(reader.model, []).parameters,
                "cut": score(small, subset),
                "metrics": {task: manifests[task].task.metrics[0] for task in subset.tasks},
            }  # fmt: skip
            if size == 1:
                chance = cut_by_chance(pruner, subset, masks, seed=trial.seed)
                row["as many units drawn by chance"] = score(chance, subset)
            rows.append(row)
    return rows


def run(trial: Trial, *, place: Place, measure: Callable[[Trial], list[dict[str, Any]]]) -> Any:
    """Trains and measures, unless that was done."""

    def find() -> list[dict[str, Any]]:
        seconds = train_trial(trial, place=place)
        return [{**row, "seconds": seconds, "steps": trial.recipe.num_steps}
                for row in measure(trial)]  # fmt: skip

    return once(place.out / f"{trial.key}.json", find)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/san"))
    parser.add_argument("--data", type=Path, default=Path("corpora"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--share", type=float, default=0.5, help="of the recipes' own steps")
    chosen = parser.parse_args()
    place = Place(chosen.out.absolute(), chosen.data.absolute())
    place.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level=logging.ERROR)
    for name in ("san_resnet", "san_polyvit", "san_multimodel"):
        recipe = load_recipe(name)
        build(list(recipe.tasks.values()), data_dir=place.data, config=recipe.build)
    found: list[dict[str, Any]] = []

    def report(rows: list[dict[str, Any]]) -> None:
        found.extend(rows)
        (place.out / "study.json").write_text(json.dumps(found, indent=1))
        (place.out / "study.md").write_text(tables(found, middle=f"{MIDDLE:g}"))

    for seed in range(chosen.seeds):
        for trial in digit_trials(place, share=chosen.share, seed=seed):
            if trial.part == "plain":
                shares = mean_shares(found, seed=seed)
                report(
                    run(trial, place=place, measure=lambda t, s=shares: measure_static(
                        t, place=place, shares=s))
                )  # fmt: skip
                continue
            report(run(trial, place=place, measure=lambda t: measure_digits(t, place=place)))
    for name in ("san_polyvit", "san_multimodel"):
        trial = Trial("transformers", name, 0, shortened(name, share=chosen.share, seed=0),
                      place.data)  # fmt: skip
        report(run(trial, place=place, measure=lambda t: measure_transformer(t, place=place)))
    for seed in range(chosen.seeds):
        base = shortened("san_resnet", share=chosen.share, seed=seed)
        middle = Trial("price", f"{MIDDLE:g}", seed, base, place.data)
        for trial in alone_trials(middle, place=place):
            report(run(trial, place=place, measure=lambda t: measure_alone(t, place=place)))
    print((place.out / "study.md").read_text())


def mean_shares(found: Sequence[Mapping[str, Any]], *, seed: int) -> dict[int, float]:
    """Operations that cuts of each size keep at the middle price, mean over unions."""
    own = [
        row for row in found
        if row["part"] == "price" and row["name"] == f"{MIDDLE:g}" and row["seed"] == seed
    ]  # fmt: skip
    sizes = sorted({row["size"] for row in own})
    return {
        size: sum(r["flops"] for r in own if r["size"] == size)
        / sum(r["size"] == size for r in own)
        for size in sizes
    }


if __name__ == "__main__":
    main()
