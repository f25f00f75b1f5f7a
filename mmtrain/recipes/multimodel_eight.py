"""Runs of MultiModel at the published sizes, on eight data sets that are yours to bring.

Kaiser et al., arXiv:1706.05137 ("paper"); what it leaves open is as in tensor2tensor v1.0.3
("code"), its models `multimodel1p8` and `slicenet1`. Put the data sets below the data folder, each
with the folders train, validation and test:

    raw/wsj                     *.jsonl with the columns audio (a file beside it) and text
    raw/imagenet                <class>/<name>.jpg, classes numbered from 0 to 999
    raw/coco                    *.jsonl with the columns image (a file beside it) and caption
    raw/wsj_trees               *.mrg, a bracketed tree a line
    raw/wmt_en_de, wmt_en_fr    *.tsv with the columns en and de, or en and fr
"""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from mmtrain.engines import EngineConfig
from mmtrain.engines.optim import OptimizerConfig
from mmtrain.modalities import image, label, spectral
from mmtrain.models import multimodel
from mmtrain.models.model import ModelConfig
from mmtrain.recipe import Recipe
from pipelines.layout import BuildConfig
from pipelines.modalities.audio import AudioFeature
from pipelines.modalities.image import ImageFeature
from pipelines.modalities.label import LabelFeature
from pipelines.modalities.text import TextFeature
from pipelines.modalities.tree import TreeFeature
from pipelines.schedule import ScheduleConfig, run_steps
from pipelines.task import Source, Task
from pipelines.tasks.multimodel import TASKS

WORKERS = 8
TASK_STEPS = 125_000
VOCABULARY_SIZE = 8192
SCHEDULE = ScheduleConfig(name="alternating")

TOKENS = 1024  # of a worker's batch, on the longer side; the longest text
PICTURES = 2  # of a worker's batch: 1024 // 384, for 299 * 299 pixels are 350 tokens of 256
BOUNDS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
BINS = 80
FRAMES_A_TOKEN = 512 / BINS  # a token is 512 values of a spectrogram
TEXT_BATCH = {
    "batch_tokens": 2 * TOKENS * WORKERS,  # of both sides
    "batch_multiple": WORKERS,
    "bucket_bounds": BOUNDS,
}
SOUND_BATCH = TEXT_BATCH | {
    "batch_size": None,
    "batch_tokens": int(2 * TOKENS * FRAMES_A_TOKEN * WORKERS),
    "bucket_bounds": tuple(int(bound * FRAMES_A_TOKEN) for bound in BOUNDS if bound >= 64),
}
PICTURE_BATCH = {"batch_size": PICTURES * WORKERS}
TEXT, TREE = TextFeature(max_tokens=TOKENS), TreeFeature(max_tokens=TOKENS)
CAPTION = TRANSCRIPT = TextFeature(max_tokens=256)
PICTURE = ImageFeature(height=299, width=299, channels=3)
SOUND = AudioFeature(
    representation="log_mel", num_bins=BINS, frame_ms=25.0, hop_ms=10.0, max_s=30.0
)
CLASSES = LabelFeature(classes=tuple(str(number) for number in range(1000)))

# By the names that the tasks have everywhere: where the data set is, what is not as shipped
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "speech_recognition": (
        "raw/wsj", SOUND_BATCH | {"inputs": SOUND, "targets": TRANSCRIPT, "loss_weight": 2.0},
    ),
    "image_classification": (
        "raw/imagenet", PICTURE_BATCH | {"inputs": PICTURE, "targets": CLASSES, "loss_weight": 0.7},
    ),
    "image_captioning": ("raw/coco", PICTURE_BATCH | {"inputs": PICTURE, "targets": CAPTION}),
    "parsing": ("raw/wsj_trees", TEXT_BATCH | {"inputs": TEXT, "targets": TREE}),
    "translation_en_de": ("raw/wmt_en_de", TEXT_BATCH | {"inputs": TEXT, "targets": TEXT}),
    "translation_de_en": ("raw/wmt_en_de", TEXT_BATCH | {"inputs": TEXT, "targets": TEXT}),
    "translation_en_fr": ("raw/wmt_en_fr", TEXT_BATCH | {"inputs": TEXT, "targets": TEXT}),
    "translation_fr_en": ("raw/wmt_en_fr", TEXT_BATCH | {"inputs": TEXT, "targets": TEXT}),
}  # fmt: skip


def multimodel_8() -> Recipe:
    """The published model, 240 experts, and its eight data sets, yours to bring. 8 GPUs, days.

    Of the paper: D 1024, 240 experts of which 4 are active, heads without a map after them (W_O),
    dilation 8, dropout 0.4, pictures of 299 x 299 x 3, the widths of all nets (1024, 1536 and 2048
    of that for labels), 8192 tokens for all text, equal steps for all tasks.

    Of the code: Adam and its rate, clipping at 2, decay 3, smoothing 0.1 of tokens and classes,
    losses times 0.7 (classes of pictures) and 2 (speech), 1024 tokens or 2 pictures a batch, expert
    width D, balance 0.01, class labels straight from the encoder, pictures standardised.

    Ours:
    - A step is one task's on all workers, each with a published batch; there each worker trained a
      task of its own, in its own time.
    - A run has 1,000,000 steps; the code says that the rate falls in the last 500,000.
    - ZeRO 2, bf16, experts over the workers.
    - Decay is of what the step's task trains; there it is of all weights at every step, tables of
      tokens in 16 parts, each with a mean of its own.
    - The map to tokens' scores starts orthogonal; there it is drawn from N(0, 1 / D).
    - Sounds are 80 log-mel bins of 25 ms each 10 ms, standardised, of 30 s at most.
    - An ordinary convolution stands before the sound's blocks; it and the picture's have biases.
    - Transcripts are of the same tokens as all text; the code has characters too.
    - The decoder runs over input and target in line, which a figure of the paper leaves open.
    - Strided windows are centred; at even lengths the code's lie one position later.
    - Pictures are not augmented; the code crops 299 of 360 pixels and mirrors.
    """
    tasks = {task.name: _published(task) for task in TASKS}
    return Recipe(
        name="multimodel_8",
        tasks=tasks,
        model=_model(num_experts=240),
        build=BuildConfig(vocabulary_size=VOCABULARY_SIZE),
        schedule=SCHEDULE,
        optimizer=_optimizer(replicas=len(tasks)),
        engine=EngineConfig(zero_stage=2, ep_size=WORKERS, precision="bf16"),
        num_steps=run_steps(tasks.values(), config=SCHEDULE),
        num_workers=WORKERS,
        use_gpu=True,
        log_every=100,
        validate_every=10_000,
        save_every=5_000,
    )


def _alone(task: str, what: str) -> Callable[[], Recipe]:
    """A recipe of one task of `multimodel_8`: its batches and steps, the rate of one replica.

    Ours: the rate stays to half of the run here too, which is shorter than the code's fall.

    Args:
        task: its name.
        what: is learned, for `mmtrain list recipes`.
    """

    def recipe() -> Recipe:
        single = multimodel_8().only([task])
        return single.with_(
            name=f"multimodel_{task}",
            model=_model(num_experts=60),
            optimizer=_optimizer(replicas=1),
            engine=single.engine.model_copy(update={"ep_size": 4}),  # 60 divide over 4, not 8
        )

    recipe.__doc__ = f"{what} alone, 60 experts, at the steps of that task in multimodel_8."
    return recipe


multimodel_speech_recognition = _alone("speech_recognition", "Speech of WSJ")
multimodel_image_classification = _alone("image_classification", "ImageNet")
multimodel_image_captioning = _alone("image_captioning", "Captions of COCO")
multimodel_parsing = _alone("parsing", "Trees of WSJ")
multimodel_translation_en_de = _alone("translation_en_de", "English to German of WMT")
multimodel_translation_de_en = _alone("translation_de_en", "German to English of WMT")
multimodel_translation_en_fr = _alone("translation_en_fr", "English to French of WMT")
multimodel_translation_fr_en = _alone("translation_fr_en", "French to English of WMT")


def _published(task: Task) -> Task:
    """A shipped task on the published data set, with its features, batches and loss."""
    uri, changes = PUBLISHED[task.name]
    source = Source(uri=uri, format=task.source.format, options=task.source.options)
    common = {"source": source, "label_smoothing": 0.1, "num_steps": TASK_STEPS}
    return task.model_copy(update=common | changes)


def _model(*, num_experts: int) -> ModelConfig:
    body = multimodel.Config.paper().model_copy(update={"num_experts": num_experts})
    nets: dict[str, BaseModel] = {
        "image": image.Config.paper(),
        "spectral": spectral.Config.paper(),
        "label": label.Config.paper(),
    }
    return ModelConfig(family="multimodel", body=body, nets=nets)


def _optimizer(*, replicas: int) -> OptimizerConfig:
    """Adam as the code has it for so many workers, a task each.

    Its rate of 0.05 is divided by 500, which its optimizer does, and by sqrt(replicas).
    """
    return OptimizerConfig(
        learning_rate=0.05 / 500 / replicas**0.5,
        schedule="exponential",
        warmup_steps=3000 * replicas,
        decay_start=0.5,
        decay_factor=0.9999955,
        betas=(0.85, 0.997),
        eps=1e-6,
        weight_decay_loss=3.0,
        clip_norm=2.0,
    )
