"""Runs of PolyViT: pictures, videos and sounds, one vision transformer, SGD as it was published.

Likhosherstov et al., arXiv:2111.12993. Nothing is tuned for training together: each task brings
the steps, learning rate, batch size and regularisation of its own run.
"""

from collections.abc import Callable

from mmtrain.engines import EngineConfig
from mmtrain.engines.optim import OptimizerConfig
from mmtrain.modalities import audio_patches, image_patches, video_tubelets
from mmtrain.models import polyvit
from mmtrain.models.model import ModelConfig
from mmtrain.recipe import Recipe
from pipelines.schedule import ScheduleConfig, run_steps
from pipelines.tasks import polyvit_nine
from pipelines.tasks.polyvit import TASKS

PATCH = (8, 8)
PROBE_STEPS = 200  # of each task
SCHEDULE = ScheduleConfig(name="weighted")
OPTIMIZER = OptimizerConfig(
    name="sgd",
    momentum=0.9,
    learning_rate=0.03,
    schedule="warm_cosine",
    clip_norm=1.0,
)


def polyvit_tiny() -> Recipe:
    """Nine tasks on digits seen, moving and spoken; 2 CPU workers, under 15 minutes."""
    tasks = {task.name: task for task in TASKS}
    return Recipe(
        name="polyvit_tiny",
        tasks=tasks,
        model=ModelConfig(
            family="polyvit",
            body=polyvit.Config(model_dim=96, num_layers=4, num_heads=4, mlp_dim=384),
            nets={
                "image_patches": image_patches.Config(patch=PATCH),
                "video_tubelets": video_tubelets.Config(patch=(2, *PATCH)),
                "audio_patches": audio_patches.Config(patch=PATCH, channels=1),
            },
        ),
        schedule=SCHEDULE,
        optimizer=OPTIMIZER,
        engine=EngineConfig(name="deepspeed", zero_stage=1),
        num_steps=run_steps(tasks.values(), config=SCHEDULE),
        num_workers=2,
        log_every=50,
        validate_every=1_000,
        save_every=500,
    )


def polyvit_b_9task() -> Recipe:
    """The published model and its nine data sets, which are yours to bring. 32 GPUs, days."""
    tasks = {task.name: task for task in polyvit_nine.TASKS}
    return Recipe(
        name="polyvit_b_9task",
        tasks=tasks,
        model=ModelConfig(family="polyvit", body=polyvit.Config.base()),
        schedule=SCHEDULE,
        optimizer=OPTIMIZER,
        engine=EngineConfig(name="deepspeed", zero_stage=1, precision="bf16"),
        num_steps=run_steps(tasks.values(), config=SCHEDULE),
        num_workers=32,
        use_gpu=True,
        log_every=100,
        validate_every=10_000,
        save_every=2_000,
    )


def _alone(task: str, what: str) -> Callable[[], Recipe]:
    """A recipe of one task of `polyvit_tiny`, for the steps of its own run.

    Args:
        task: its name.
        what: it answers, for `mmtrain list recipes`.
    """

    def recipe() -> Recipe:
        single = polyvit_tiny().only([task])
        num_steps = run_steps(single.tasks.values(), config=SCHEDULE)
        return single.with_(name=f"polyvit_{task}", num_steps=num_steps)

    recipe.__doc__ = f"The task {task} alone, at its own settings: {what}."
    return recipe


polyvit_digit = _alone("digit", "which digit a scan shows")
polyvit_digit_set = _alone("digit_set", "which digits a canvas holds")
polyvit_digit_pair = _alone("digit_pair", "which digit stands left and which right")
polyvit_digit_box = _alone("digit_box", "where a digit is")
polyvit_digit_mask = _alone("digit_mask", "which pixels are a digit's, and of which")
polyvit_motion_direction = _alone("motion_direction", "where a digit moves")
polyvit_motion_identity = _alone("motion_identity", "which digit moves")
polyvit_spoken_digit = _alone("spoken_digit", "which digit is said")
polyvit_speaking_voice = _alone("speaking_voice", "whose voice says it")


def linear_probe() -> Recipe:
    """Fresh linear heads on a frozen body, of what --init-from names; how far its features go."""
    probed = {"num_steps": PROBE_STEPS, "learning_rate": None, "warmup_steps": None}
    plain = {"betas": None, "momentum": None, "mixup": 0.0, "drop_layer": 0.0, "augment": ()}
    tasks = {task.name: task.model_copy(update=probed | plain) for task in TASKS}
    schedule = ScheduleConfig(name="alternating")
    return polyvit_tiny().with_(
        name="linear_probe",
        tasks=tasks,
        frozen=("body/*", "modality/*"),
        init_heads="fresh",
        schedule=schedule,
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=0),
        num_steps=run_steps(tasks.values(), config=schedule),
        validate_every=0,
    )
