"""Cut networks: what fewer units are worth in time, and how long it takes to cut and to switch.

Three bases at two sizes: "small" as the quickstart-sized runs of subtasks have them, "usual" as
such networks are commonly built. Of each group of units a share is kept, drawn by chance, so that
counts are as odd as masks make them. A speed-up is compared with the ideal one, operations of the
whole over operations of the cut network; the bound is 0.7 of it at batches of 32. Times are the
process's CPU time, one thread, medians of interleaved repeats, summed over the base's tasks.

    python -m tests.benchmarks.bench_prune [--repeats 9]
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmtrain.bundle import Lineage, bundle_task, load_bundle, save_bundle
from mmtrain.cut.examples import TaskInputs
from mmtrain.cut.pruner import Pruner
from mmtrain.cut.slicing import cut
from mmtrain.derive.measurement import cost_of
from mmtrain.masks.attach import add_masks
from mmtrain.modalities import image_patches
from mmtrain.models import multimodel, polyvit, resnet
from mmtrain.models.config import net_of
from mmtrain.models.model import ModelConfig, MultiTaskModel, TaskSpec, build_model
from mmtrain.predict.predictor import Predictor
from mmtrain.recipe import Recipe, load_recipe
from mmtrain.run.model import fitted
from pipelines.modalities.image import to_png
from pipelines.task import Task

BOUND = 0.7  # of the ideal speed-up, at batches of the larger size
CUT_BOUND_S = 1.0
MEASURED = ((0.5, 1), (0.5, 32), (0.25, 32))  # share of units, examples in a batch
TEXT = 24  # tokens of a text


@dataclass(frozen=True, slots=True)
class Base:
    """A network and shapes of its tasks' inputs; axis 0 of a shape is the axis of lengths."""

    name: str
    model: MultiTaskModel
    shapes: Mapping[str, tuple[int, ...]]

    def batches(self, size: int) -> list[TaskInputs]:
        """Noise for each task."""
        return [self._batch(task, shape, size) for task, shape in self.shapes.items()]

    def _batch(self, task: str, shape: tuple[int, ...], size: int) -> TaskInputs:
        inputs: Tensor = torch.randn(size, *shape)
        if self.model.task(task).input_net == "text":
            inputs = tokens(size)
        targets = tokens(size) if self.model.task(task).num_outputs is None else None
        return TaskInputs(task, inputs, torch.full((size,), shape[0]), targets)


def tokens(size: int) -> Tensor:
    return torch.randint(6, 1000, (size, TEXT))


def small(name: str) -> Base:
    """The network of a shipped run of subtasks, with its masks, untrained."""
    recipe = load_recipe(name)
    shapes = {task.name: shape_of(task) for task in recipe.tasks.values()}
    return Base(name, masked_model(recipe), shapes)


def shape_of(task: Task) -> tuple[int, ...]:
    """Shape of an input as the task's `collate` makes it."""
    feature: Any = task.inputs
    if feature.modality == "text":
        return (TEXT,)
    if feature.modality == "audio":
        return (getattr(feature, "num_frames", None) or 48, feature.num_bins)
    frames = (feature.num_frames,) if feature.modality == "video" else ()
    return (*frames, feature.height, feature.width, feature.channels)


def specs_of(recipe: Recipe) -> list[TaskSpec]:
    """As a run makes them, with commands that no vocabulary has given."""
    family = recipe.model.family
    return [
        TaskSpec(
            name=task.name,
            input_net=net_of(family, task.inputs),
            output_net=net_of(family, task.targets),
            num_outputs=task.targets.num_outputs,
            output_groups=task.targets.output_groups,
            loss=task.loss or task.targets.loss,
            command_id=2 if task.command else None,
        )
        for task in recipe.tasks.values()
    ]


def masked_model(recipe: Recipe) -> MultiTaskModel:
    model = build_model(fitted(recipe), specs_of(recipe), seed=0)
    assert recipe.pruning is not None, "recipes of subtasks have masks"
    add_masks(model, recipe.pruning, seed=0)
    return spread(model.eval())


def spread(model: MultiTaskModel) -> MultiTaskModel:
    """Gates of experts as after training: rows go to different ones."""
    for name, weight in model.named_parameters():
        if ".gate." in name:
            weight.data.normal_()
    return model


def usual_resnet() -> Base:
    body = resnet.Config(channels=3, depth=20, widths=(64, 128, 256))
    config = ModelConfig(family="resnet", body=body)
    spec = TaskSpec(name="image", input_net="image_pixels", output_net="linear", num_outputs=10)
    return Base("resnet20_64", build_model(config, [spec], seed=0).eval(), {"image": (32, 32, 3)})


def usual_polyvit() -> Base:
    nets = {"image_patches": image_patches.Config(height=112, width=112, channels=3)}
    config = ModelConfig(family="polyvit", body=polyvit.Config.tiny(), nets=nets)
    spec = TaskSpec(name="image", input_net="image_patches", output_net="linear", num_outputs=10)
    return Base("vit_tiny", build_model(config, [spec], seed=0).eval(), {"image": (112, 112, 3)})


def usual_multimodel() -> Base:
    body = multimodel.Config(model_dim=512, num_experts=8, expert_dim=512, join="none")
    config = ModelConfig(family="multimodel", body=body, vocab_size=2000)
    spec = TaskSpec(name="text", input_net="text", output_net="text", command_id=2)
    return Base(
        "multimodel_512", spread(build_model(config, [spec], seed=0).eval()), {"text": (TEXT,)}
    )


def cut_by_chance(model: MultiTaskModel, share: float) -> MultiTaskModel:
    """Each unit stays with a probability of `share`, the first one of each group always."""
    generator = torch.Generator().manual_seed(0)
    kept = {
        group.name: torch.rand(group.size, generator=generator) < share
        for group in model.prunable_units()
    }
    for mask in kept.values():
        mask[0] = True
    return cut(model, kept)


@torch.inference_mode()
def medians_ms(
    models: Sequence[MultiTaskModel], batches: Sequence[TaskInputs], *, repeats: int
) -> list[float]:
    """CPU milliseconds of a pass of all batches, models in turns; the first round warms up."""
    times: list[list[float]] = [[] for _ in models]
    for _ in range(repeats + 1):
        for model, seen in zip(models, times, strict=True):
            began = time.process_time()
            for batch in batches:
                batch.forward(model)
            seen.append((time.process_time() - began) * 1e3)
    return [statistics.median(seen[1:]) for seen in times]


def measure_speed(base: Base, *, repeats: int) -> None:
    """Speed-ups beside the ideal ones."""
    whole = cut(base.model, {})
    for share, size in MEASURED:
        part, batches = cut_by_chance(base.model, share), base.batches(size)
        ideal = cost_of(whole, batches).flops / cost_of(part, batches).flops
        whole_ms, part_ms = medians_ms((whole, part), batches, repeats=repeats)
        report(
            f"cut_{base.name}_{share:.0%}_of_units_batch_{size}_against_ideal_speed-up",
            ours=whole_ms / part_ms,
            peer=ideal,
            unit=f"times faster (whole {whole_ms:.1f} ms)",
            better="higher",
        )


def measure_cutting(base: Base, recipe: Recipe, *, repeats: int) -> None:
    """Time to cut, to switch in memory, and bytes on disk, all for the first subtask."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        _save(base.model, recipe, out=out / "whole", pruned=False)
        predictor = Predictor(load_bundle(out / "whole"))
        pruner = Pruner(predictor.bundle, model=predictor.model)
        names = pruner.bank.subtasks
        subset = pruner.subset(names[:1])
        seconds = median_s(lambda: pruner.cut(subset), repeats=repeats)
        report(f"cut_{base.name}_time", ours=seconds, peer=CUT_BOUND_S, unit="s", better="lower")
        values = _pictures(predictor)
        began = time.process_time()
        predictor.for_subtasks(names[:1], unlabelled=values)
        first = time.process_time() - began
        again = median_s(lambda: predictor.for_subtasks(names[:1]), repeats=repeats)
        name = f"cut_{base.name}_switch_back_against_first_use"
        report(name, ours=again * 1e3, peer=first * 1e3, unit="ms", better="lower")
        part = pruner.cut(subset)
        _save(part, recipe.only(subset.tasks), out=out / "part", pruned=True)
        sizes = [sum(f.stat().st_size for f in (out / n).rglob("*")) for n in ("part", "whole")]
        report(
            f"cut_{base.name}_on_disk", ours=sizes[0] / 1e6, peer=sizes[1] / 1e6, unit="MB",
            better="lower",
        )  # fmt: skip


def _save(model: MultiTaskModel, recipe: Recipe, *, out: Path, pruned: bool) -> None:
    lineage = Lineage(
        recipe=recipe.name, recipe_digest="0", code_version="0", corpora={}, step=0
    )  # fmt: skip
    save_bundle(
        out,
        model=model.config,
        tasks={n: bundle_task(t, spec=model.task(n)) for n, t in recipe.tasks.items()},
        state=model.state_dict(),
        vocabulary=None,
        lineage=lineage,
        pruning=None if pruned else recipe.pruning,
    )


def _pictures(predictor: Predictor) -> dict[str, list[bytes]]:
    """Ten batches of unlabelled pictures, for tasks of pictures."""
    rng = np.random.default_rng(0)
    return {
        name: [to_png(rng.integers(0, 256, (16, 16), dtype=np.uint8)) for _ in range(320)]
        for name, task in predictor.tasks.items()
        if task.spec.input_net == "image_pixels"
    }


def median_s(call: Callable[[], object], *, repeats: int) -> float:
    """CPU seconds of a call."""
    times = []
    for _ in range(repeats + 1):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return statistics.median(times[1:])


def report(name: str, *, ours: float, peer: float, unit: str, better: str) -> None:
    line = {
        "name": name,
        "ours": float(f"{ours:.3g}"),
        "peer": float(f"{peer:.3g}"),
        "ratio": float(f"{ours / peer:.3g}"),
        "unit": unit,
        "better": better,
    }
    print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    repeats: int = parser.parse_args().repeats
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in ("san_resnet", "san_polyvit", "san_multimodel"):
        base = small(name)
        measure_speed(base, repeats=repeats)
        measure_cutting(base, load_recipe(name), repeats=repeats)
    for build in (usual_resnet, usual_polyvit, usual_multimodel):
        measure_speed(build(), repeats=repeats)


if __name__ == "__main__":
    main()
