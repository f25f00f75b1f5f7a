"""A plan of a run before anything is started: what it holds, sends, takes and may not be.

Parameters are counted on a model without data, activations traced (`footprint.py`), the rest is
arithmetic. Corpora need not be built: then inputs are taken as long as their features allow, and
the plan says so.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mmtrain.engines import EngineConfig
from mmtrain.engines.optim import load_rule
from mmtrain.layers.experts import is_expert
from mmtrain.layers.moe import MoE
from mmtrain.models.model import MASKS, MultiTaskModel, TaskSpec
from mmtrain.planning.footprint import Footprint, StepTracer, meta_model
from mmtrain.planning.longest import LongestBatch, longest_batches
from mmtrain.planning.refusals import Combination, combinations, why_refused
from mmtrain.planning.tasks import TaskPlan, built_vocabulary, sizes_are_assumed, task_plans
from mmtrain.planning.traffic import Traffic, step_traffic
from mmtrain.planning.zero_memory import FP32, Parameter, RankMemory, keeps_gradients, rank_memory
from mmtrain.recipe import Recipe
from mmtrain.run.model import fitted, task_specs
from mmtrain.run.preflight import PreflightError, check_resources, checkpoint_bytes
from mmtrain.run.task_steps import built_splits
from pipelines.shards import Manifest
from pipelines.vocabulary import Vocabulary

USABLE = 0.9  # of a GPU's memory: the rest is CUDA's own, and what fragments


@dataclass(frozen=True, slots=True)
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

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        return {
            "workers": self.workers,
            "memory": self.memory.to_dict() if self.memory else None,
            "traffic": self.traffic.to_dict() if self.traffic else None,
            "refused": self.refused,
        }


@dataclass(frozen=True, slots=True)
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

    def to_dict(self) -> dict[str, object]:
        """As JSON holds it."""
        return {
            **{key: getattr(self, key) for key in ("recipe", "num_steps", "checkpoint", "disk")},
            "engine": self.engine.model_dump(),
            "parameters": {"total": sum(self.parameters.values()), "owners": self.parameters},
            "tasks": {name: asdict(task) for name, task in self.tasks.items()},
            "layouts": [layout.to_dict() for layout in self.layouts],
            "smallest": self.smallest,
            "combinations": [found.to_dict() for found in self.combinations],
            "resources": self.resources,
            "lacking": self.lacking,
            "assumed": list(self.assumed),
        }


class _AnyCommand:
    """Stands for a vocabulary: which token starts a task's decoding changes no size."""

    def command_id(self, command: str) -> int:
        """Some token."""
        return 2


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
    layouts = [planner.layout(count) for count in counts]
    smallest = planner.smallest(gpu_bytes) if gpu_bytes else None
    if smallest is not None and smallest not in counts:
        layouts.append(planner.layout(smallest))
    weights = sum(held.numel for held in planner.parameters)
    trained = sum(held.numel for held in planner.parameters if held.is_trained)
    return RunPlan(
        recipe=recipe.name,
        engine=recipe.engine,
        parameters=by_owner(planner.parameters),
        tasks=task_plans(recipe, batches, manifests),
        num_steps=recipe.num_steps,
        layouts=layouts,
        combinations=list(
            combinations(
                recipe,
                num_experts=planner.num_experts,
                batches=planner.all_batches,
                workers=counts,
            )
        ),
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
        self._specs: list[TaskSpec] = task_specs(recipe, _AnyCommand())  # type: ignore[arg-type]
        model, _ = meta_model(recipe, self._specs)
        self.parameters = parameters_of(model, recipe)
        self.num_experts = [m.num_experts for m in model.modules() if isinstance(m, MoE)]
        self.num_moments = len(load_rule(recipe.optimizer.name).states)
        self.all_batches = [batch for some in batches.values() for batch in some]
        self._tracer: StepTracer | None = None
        self._traced: dict[tuple[object, ...], Footprint] = {}

    def layout(self, workers: int) -> Layout:
        """On so many workers."""
        engine = self._recipe.engine
        asked = self._recipe.model_copy(update={"num_workers": workers})
        refused = why_refused(asked, num_experts=self.num_experts, batches=self.all_batches)
        if workers % engine.ep_size or any(n % engine.ep_size for n in self.num_experts):
            return Layout(workers, None, None, refused)
        footprints = self._footprints(workers)
        memory = rank_memory(
            self.parameters,
            footprints,
            engine=engine,
            world_size=workers,
            num_moments=self.num_moments,
            use_gpu=self._recipe.use_gpu,
        )
        sent = [
            step_traffic(self.parameters, found, engine=engine, world_size=workers)
            for found in footprints
        ]
        return Layout(workers, memory, max(sent, key=lambda one: one.total), refused)

    def smallest(self, gpu_bytes: float) -> int | None:
        """Fewest workers, of powers of two up to 4096, whose ranks fit; None: none do."""
        for workers in (2**power for power in range(13)):
            asked = self._recipe.model_copy(update={"num_workers": workers})
            if why_refused(asked, num_experts=self.num_experts, batches=self.all_batches):
                continue
            found = self.layout(workers).memory
            if found and found.total <= USABLE * gpu_bytes:
                return workers
        return None

    def _footprints(self, workers: int) -> list[Footprint]:
        """Of each step there may be; of those alike but for their classes, the one with most."""
        if self._tracer is None:
            self._tracer = StepTracer(self._recipe, self._specs)
        most: dict[tuple[object, ...], list[LongestBatch]] = {}
        for batches in self._steps():
            key = tuple(self._alike(batch, workers) for batch in batches)
            if key not in most or self._num_outputs(batches) > self._num_outputs(most[key]):
                most[key] = batches
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
        """The largest batches of each task, one step each; of a schedule that adds all tasks up,
        one step of all.
        """  # fmt: skip
        largest = {name: _largest(some) for name, some in self._batches.items()}
        if self._recipe.schedule.name == "accumulating":
            return [[some[0] for some in largest.values()]]
        return [[batch] for some in largest.values() for batch in some]

    def _alike(self, batch: LongestBatch, workers: int) -> tuple[object, ...]:
        task = self._recipe.tasks[batch.task]
        spec = next(spec for spec in self._specs if spec.name == batch.task)
        size = -(-batch.size // (workers * self._recipe.engine.accumulation))
        return (
            size, batch.inputs, batch.targets, spec.input_net, spec.output_net, task.mixup,
            task.label_smoothing, spec.loss, spec.drop_layer,
        )  # fmt: skip


def _largest(batches: Sequence[LongestBatch]) -> list[LongestBatch]:
    """Those with most positions, and with most pairs of positions: attention is of pairs."""
    by_pairs = max(batches, key=lambda b: b.size * (b.inputs[0] + b.targets[0]) ** 2)
    by_positions = max(batches, key=lambda b: b.positions)
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


def by_owner(parameters: Iterable[Parameter]) -> dict[str, int]:
    """Elements by owner, in the order of the model."""
    found: dict[str, int] = {}
    for held in parameters:
        found[held.owner] = found.get(held.owner, 0) + held.numel
    return found


def resources_of(recipe: Recipe) -> dict[str, float]:
    """What Ray must have: a CPU for each worker, its readers', and one for the driver."""
    cpus = recipe.num_workers * (1 + recipe.stream.num_cpus)
    found = {"worker CPUs": float(recipe.num_workers), "data CPUs": cpus - recipe.num_workers}
    found |= {"driver CPUs": 1.0, "CPU": cpus + 1}
    return found | ({"GPU": float(recipe.num_workers)} if recipe.use_gpu else {})


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
    found = []
    missing = [name for name, manifest in manifests.items() if manifest is None]
    if missing:
        found.append(
            f"not built: {', '.join(missing)}; inputs and targets as long as their features allow"
        )
    if sizes_are_assumed(recipe, manifests):
        found.append("steps and epochs of schedule 'proportional': corpora as if equally large")
    if vocabulary is None and recipe.model.vocab_size is not None:
        found.append(f"a vocabulary of {recipe.model.vocab_size} tokens, as the recipe allows")
    if any(len(task.bucket_bounds) for task in recipe.tasks.values()):
        found.append("epochs of tasks with a token budget: their length buckets as often as each")
    if recipe.balancing == "pcgrad":
        found.append("balancing=pcgrad keeps a gradient of the body for each task, not counted")
    if recipe.use_gpu:
        found.append("activations as this machine's kernels keep them; a GPU's are alike")
    return found
