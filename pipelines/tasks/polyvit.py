"""Nine tasks that one PolyViT learns, on pictures, videos and sounds of digits.

Their training sets are very unequal: 4,000, 2,000, 2,000 ... 500, 100 examples. Each task carries
the hyper-parameters of its own run with SGD (momentum 0.9, gradients clipped to norm 1). A loss
that is small by its nature (of boxes in 0..1, of masks that are mostly background) has a weight,
not a large learning rate, for a step's rate also moves what other tasks left in the momentum.
All tasks of a modality have inputs of one size, for they share its tokens' positions.
"""

from typing import Any

from pipelines.modalities import Feature
from pipelines.modalities.audio import AudioFeature
from pipelines.modalities.image import ImageFeature
from pipelines.modalities.label import LabelFeature
from pipelines.modalities.labels import LabelsFeature
from pipelines.modalities.mask import MaskFeature
from pipelines.modalities.multilabel import MultiLabelFeature
from pipelines.modalities.numbers import NumbersFeature
from pipelines.modalities.video import VideoFeature
from pipelines.task import Augmentation, Source, Task

DIGITS = tuple("0123456789")
SIDE = 32  # pixels
PICTURE = ImageFeature(height=SIDE, width=SIDE, channels=1)
CLIP = VideoFeature(height=SIDE, width=SIDE, channels=1, num_frames=8, frame_step=2, min_frames=2)
SOUND = AudioFeature(
    representation="log_mel",
    num_bins=32,
    hop_ms=12.0,
    max_s=1.0,
    num_frames=48,
    standard="corpus",
)
MASKED = Augmentation(
    name="spec_augment",
    settings={"bin_masks": 1, "max_bins": 8, "frame_masks": 2, "max_frames": 8},
)
CLASS_METRICS = ("accuracy", "log_perplexity")
WAYS = ("right", "down right", "down", "down left", "left", "up left", "up", "up right")
VOICES = ("alex", "andy", "annie", "croak", "grandma", "klatt", "storm", "whisper")


def columns(corpus: str, kind: str, *, inputs: str, target: str, files: str) -> Source:
    """Two columns of one of a corpus's manifests."""
    return Source(
        uri=f"raw/{corpus}",
        format="jsonl",
        options={"manifest": f"{kind}.jsonl", "input": inputs, "target": target, "files": files},
        maker=corpus,
    )


def digits_task(
    name: str, source: Source, inputs: Feature, targets: Feature, *, num_steps: int, **fields: Any
) -> Task:
    """A task in mini-batches of 32, at the rate 0.1 after a warm-up of a part of its steps."""
    defaults: dict[str, Any] = {
        "metrics": CLASS_METRICS,
        "baseline": "majority_class",
        "warmup_steps": num_steps // 20,
    }
    return Task(
        name=name, source=source, inputs=inputs, targets=targets, batch_size=32,
        num_steps=num_steps, learning_rate=0.1, **(defaults | fields),
    )  # fmt: skip


def canvas_task(
    name: str, kind: str, targets: Feature, *, target: str, files: str = "image", **fields: Any
) -> Task:
    """A task on canvases of digits."""
    source = columns("canvases", kind, inputs="image", target=target, files=files)
    return digits_task(name, source, PICTURE, targets, **fields)


def motion_task(
    name: str, kind: str, classes: tuple[str, ...], *, target: str, num_steps: int
) -> Task:
    """A task on clips of moving digits."""
    source = columns("moving_digits", kind, inputs="video", target=target, files="video")
    return digits_task(name, source, CLIP, LabelFeature(classes=classes), num_steps=num_steps)


def sound_task(
    name: str, kind: str, classes: tuple[str, ...], *, target: str, **fields: Any
) -> Task:
    """A task on spoken digits, augmented as published sounds are."""
    source = columns("spoken_digits", kind, inputs="audio", target=target, files="audio")
    return digits_task(
        name, source, SOUND, LabelFeature(classes=classes), augment=(MASKED,), mixup=0.3,
        drop_layer=0.3, **fields,
    )  # fmt: skip


TASKS = (
    digits_task(
        "digit",
        Source(uri="raw/digits", format="image_folder", maker="digits"),
        PICTURE,
        LabelFeature(classes=DIGITS),
        metrics=("accuracy", "top5_accuracy", "log_perplexity"),
        num_steps=500,
    ),
    canvas_task(
        "digit_set",
        "digits",
        MultiLabelFeature(classes=DIGITS),
        target="digits",
        metrics=("mean_average_precision", "f1"),
        baseline="label_frequency",
        num_steps=2_000,
    ),
    canvas_task(
        "digit_pair",
        "pairs",
        LabelsFeature(parts={"left": DIGITS, "right": DIGITS}),
        target="pair",
        metrics=("part_accuracy", "exact"),
        num_steps=1_000,
    ),
    canvas_task(
        "digit_box",
        "boxes",
        NumbersFeature(names=("left", "top", "right", "bottom"), low=0.0, high=SIDE),
        target="box",
        metrics=("box_iou", "mean_squared_error"),
        baseline="mean_value",
        loss_weight=5.0,
        num_steps=500,
    ),
    canvas_task(
        "digit_mask",
        "masks",
        MaskFeature(height=SIDE, width=SIDE, classes=("background", *DIGITS)),
        target="mask",
        files="image,mask",
        metrics=("mean_iou", "element_accuracy"),
        baseline="majority_element",
        loss_weight=10.0,
        num_steps=1_000,
    ),
    motion_task("motion_direction", "directions", WAYS, target="direction", num_steps=250),
    motion_task("motion_identity", "identities", DIGITS, target="digit", num_steps=1_000),
    sound_task("spoken_digit", "digits", DIGITS, target="digit", num_steps=500),
    sound_task("speaking_voice", "voices", VOICES, target="voice", num_steps=50, warmup_steps=5),
)
