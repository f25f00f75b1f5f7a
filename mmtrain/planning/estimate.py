"""A plan of a run before anything is started: what it holds, sends, takes and may not be.

Parameters are counted on a model without data, activations traced (`footprint.py`), the rest is
arithmetic. Corpora need not be built: then inputs are taken as long as their features allow, and
the plan says so.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, field_serializer
from pydantic.dataclasses import dataclass

from mmtrain.engines import EngineConfig
from mmtrain.engines.optim import load_rule
from mmtrain.layers.experts import is_expert
from mmtrain.layers.moe import MoE
from mmtrain.models.model import MASKS, MultiTaskModel
from mmtrain.planning.footprint import Footprint, StepTracer, meta_model, planned_specs
from mmtrain.planning.longest import LongestBatch, longest_batches
from mmtrain.planning.refusals import Combination, combinations, why_refused
from mmtrain.planning.tasks import TaskPlan, built_vocabulary, sizes_are_assumed, task_plans
from mmtrain.planning.traffic import Traffic, step_traffic
from mmtrain.planning.zero_memory import FP32, Parameter, RankMemory, ZeroRank, keeps_gradients
from mmtrain.recipe import Recipe
from mmtrain.run.model import fitted
from mmtrain.run.preflight import PreflightError, check_resources, checkpoint_bytes
from mmtrain.run.task_steps import built_splits
from pipelines.shards import Manifest
from pipelines.vocabulary import Vocabulary

USABLE = 0.9  # of a GPU's memory: the rest is CUDA's own, and what fragments


@dataclass(frozen=True)
class Layout:
    """A number of workers: what a rank holds and sends, or why it is refused.

    Args:
        workers: ranks, each with a GPU where the recipe says so.
        memory: None: the experts do not divide.
        traffic: of the step that sends most.
        refused: why a run would not start; None: it would.
    """

    workers: int
    memory: RankMemory | None
    traffic: Traffic | None
    refused: str | None


@dataclass(frozen=True)
class RunPlan:
    """All that is known of a run before it starts; sizes are bytes.

    Args:
        parameters: by owner; the whole model's.
        layouts: the recipe's own number of workers first, then those asked for.
        checkpoint: one of them on disk.
        disk: checkpoints that are kept, one being written, and the bundle.
        resources: what Ray must have, by its names.
        lacking: why the cluster described is too small; None: it is not, or none was.
        assumed: what was not known, a line each.
        smallest: fewest workers whose ranks fit the GPUs described; None: none do, or none was.
    """

    recipe: str
    engine: EngineConfig
    parameters: Mapping[str, int]
    tasks: Mapping[str, TaskPlan]
    num_steps: int
    layouts: Sequence[Layout]
    combinations: Sequence[Combination]
    checkpoint: int
    disk: int
    resources: Mapping[str, float]
    lacking: str | None
    assumed: Sequence[str]
    smallest: int | None = None

    @field_serializer("parameters")
    def _with_total(self, owners: Mapping[str, int]) -> dict[str, Any]:
        return {"total": sum(owners.values()), "owners": owners}

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON holds it."""
        return TypeAdapter(RunPlan).dump_python(self, mode="json")


def plan_run(
    recipe: Recipe,
    *,
    data_dir: Path,
    workers: Sequence[int] = (),
    gpu_bytes: float | None = None,
    cluster: Mapping[str, float] | None = None,
) -> RunPlan:
    """The plan of a recipe.

    Args:
        recipe: the run.
        data_dir: folder of corpora; what is built there is taken as it is.
        workers: other numbers of ranks to look at.
        gpu_bytes: memory of a GPU; the fewest ranks that fit are looked for.
        cluster: its resources, as Ray names them; None: not compared.

    Raises:
        MMTrainError: the recipe makes no model, or a task no batches.
    """
    manifests = built_splits(recipe, data_dir)
    vocabulary = built_vocabulary(manifests, data_dir=data_dir)
    recipe = recipe.with_(model=fitted(recipe, vocabulary))
    batches = {name: longest_batches(task, manifests[name]) for name, task in recipe.tasks.items()}
    planner = Planner(recipe, batches)
    counts = list(dict.fromkeys([recipe.num_workers, *workers]))
    smallest = planner.smallest(gpu_bytes) if gpu_bytes else None
    shown = counts if smallest is None or smallest in counts else [*counts, smallest]
    grid = combinations(
        recipe, num_experts=planner.num_experts, batches=planner.all_batches, workers=counts
    )
    weights = sum(held.numel for held in planner.parameters)
    trained = sum(held.numel for held in planner.parameters if held.is_trained)
    owners: Counter[str] = Counter()
    for held in planner.parameters:
        owners[held.owner] += held.numel
    return RunPlan(
        recipe=recipe.name,
        engine=recipe.engine,
        parameters=owners,
        tasks=task_plans(recipe, batches, manifests),
        num_steps=recipe.num_steps,
        layouts=[planner.layout(count) for count in shown],
        combinations=list(grid),
        checkpoint=FP32 * (weights + planner.num_moments * trained),
        disk=checkpoint_bytes(weights, keep=recipe.keep_checkpoints),
        resources=resources_of(recipe),
        lacking=_lacking(recipe, cluster) if cluster else None,
        assumed=_assumed(recipe, manifests, vocabulary),
        smallest=smallest,
    )


class Planner:
    """Layouts of a recipe on any number of workers.

    Args:
        recipe: the run.
        batches: of each task, a global batch of each length bucket at its longest.
    """

    def __init__(self, recipe: Recipe, batches: Mapping[str, Sequence[LongestBatch]]) -> None:
        self._recipe, self._batches = recipe, batches
        self._specs = {spec.name: spec for spec in planned_specs(recipe)}
        model, _ = meta_model(recipe)
        self.parameters = parameters_of(model, recipe)
        self.num_experts = [m.num_experts for m in model.modules() if isinstance(m, MoE)]
        self.num_moments = len(load_rule(recipe.optimizer.name).states)
        self.all_batches = [batch for some in batches.values() for batch in some]
        self._tracer: StepTracer | None = None
        self._traced: dict[tuple[object, ...], Footprint] = {}

    def layout(self, workers: int) -> Layout:
        """What a rank of so many holds and sends, or why a run would not start."""
        engine, refused = self._recipe.engine, self._refused(workers)
        if any(count % engine.ep_size for count in (workers, *self.num_experts)):
            return Layout(workers, None, None, refused)
        rank = ZeroRank(
            self.parameters, engine, workers, self.num_moments, use_gpu=self._recipe.use_gpu
        )
        footprints = self._footprints(workers)
        sent = [step_traffic(rank, footprint) for footprint in footprints]
        most = max(sent, key=lambda traffic: traffic.total)
        return Layout(workers, rank.memory(footprints), most, refused)

    def smallest(self, gpu_bytes: float) -> int | None:
        """Fewest workers, of powers of two up to 4096, whose ranks fit; None: none do."""
        for workers in (2**power for power in range(13)):
            if self._refused(workers) is None:
                memory = self.layout(workers).memory
                if memory and memory.total <= USABLE * gpu_bytes:
                    return workers
        return None

    def _refused(self, workers: int) -> str | None:
        recipe = self._recipe.model_copy(update={"num_workers": workers})
        return why_refused(recipe, num_experts=self.num_experts, batches=self.all_batches)

    def _footprints(self, workers: int) -> list[Footprint]:
        """Of each step there may be; of those alike but for their classes, the one with most."""
        if self._tracer is None:
            self._tracer = StepTracer(self._recipe)
        most: dict[tuple[object, ...], list[LongestBatch]] = {}
        for batches in self._steps():
            key = tuple(self._alike(batch, workers) for batch in batches)
            most[key] = max(most.get(key, batches), batches, key=self._num_outputs)
        for key, batches in most.items():
            if key not in self._traced:
                self._traced[key] = self._tracer.trace(
                    batches,
                    world_size=workers,
                    keeps_gradients=keeps_gradients(self._recipe.engine),
                )
        return [self._traced[key] for key in most]

    def _num_outputs(self, batches: Sequence[LongestBatch]) -> int:
        return sum(self._recipe.tasks[batch.task].targets.num_outputs or 0 for batch in batches)

    def _steps(self) -> list[list[LongestBatch]]:
        """The largest batches of each task, one step each; of a schedule that adds tasks up, one
        step of all, for it may put the largest together.
        """  # fmt: skip
        largest = [_largest(some) for some in self._batches.values()]
        if self._recipe.schedule.kind.tasks_a_step != 1:
            return [[some[0] for some in largest]]
        return [[batch] for some in largest for batch in some]

    def _alike(self, batch: LongestBatch, workers: int) -> tuple[object, ...]:
        task, spec = self._recipe.tasks[batch.task], self._specs[batch.task]
        size = -(-batch.size // (workers * self._recipe.engine.accumulation))
        return (
            size, batch.inputs, batch.targets, spec.input_net, spec.output_net, task.mixup,
            task.label_smoothing, spec.loss, spec.drop_layer,
        )  # fmt: skip


def _largest(batches: Sequence[LongestBatch]) -> list[LongestBatch]:
    """Those with most positions, and with most pairs of positions: attention is of pairs."""
    by_pairs = max(batches, key=lambda b: b.size * (b.inputs[0] + b.targets[0]) ** 2)
    by_positions = max(batches, key=lambda b: b.size * (b.inputs[0] + b.targets[0]))
    return [by_positions] if by_pairs == by_positions else [by_positions, by_pairs]


def parameters_of(model: MultiTaskModel, recipe: Recipe) -> list[Parameter]:
    """All parameters of a model; what decays is in groups of the optimizer of its own."""
    decays = recipe.optimizer.weight_decay > 0
    return [
        Parameter(
            name=name,
            owner=(owner := model.parameter_owner(name)),
            numel=held.numel(),
            is_expert=is_expert(held),
            is_trained=held.requires_grad,
            decays=decays and held.ndim > 1 and owner != MASKS,
        )
        for name, held in model.named_parameters()
    ]


def resources_of(recipe: Recipe) -> dict[str, float]:
    """What Ray must have: a CPU for each worker, its readers', and one for the driver."""
    workers, data = float(recipe.num_workers), recipe.num_workers * recipe.stream.num_cpus
    cpus = {"worker CPUs": workers, "data CPUs": data, "driver CPUs": 1.0}
    return cpus | {"CPU": sum(cpus.values())} | ({"GPU": workers} if recipe.use_gpu else {})


def _lacking(recipe: Recipe, cluster: Mapping[str, float]) -> str | None:
    try:
        check_resources(
            cluster,
            num_workers=recipe.num_workers,
            data_cpus=recipe.stream.num_cpus,
            use_gpu=recipe.use_gpu,
        )
    except PreflightError as error:
        return str(error)
    return None


def _assumed(
    recipe: Recipe, manifests: Mapping[str, Manifest | None], vocabulary: Vocabulary | None
) -> list[str]:
    missing = ", ".join(name for name, manifest in manifests.items() if manifest is None)
    has_buckets = any(len(task.bucket_bounds) for task in recipe.tasks.values())
    lines = {
        f"not built: {missing}; inputs and targets as long as their features allow": missing,
        "steps and epochs of schedule 'proportional': corpora as if equally large": (
            sizes_are_assumed(recipe, manifests)
        ),
        f"a vocabulary of {recipe.model.vocab_size} tokens, as the recipe allows": (
            vocabulary is None and recipe.model.vocab_size is not None
        ),
        "epochs of tasks with a token budget: their length buckets as often as each": has_buckets,
        "balancing=pcgrad keeps a gradient of the body for each task, not counted": (
            recipe.balancing == "pcgrad"
        ),
        "activations as this machine's kernels keep them; a GPU's are alike": recipe.use_gpu,
    }
    return [line for line, applies in lines.items() if applies]
