"""Nine tasks that one PolyViT learns, on pictures, videos and sounds of digits.

Their training sets are very unequal: 4,000, 2,000, 2,000 ... 500, 100 examples. Each task carries
the hyper-parameters of its own run with SGD (momentum 0.9, gradients clipped to norm 1). A loss
that is small by its nature (of boxes in 0..1, of masks that are mostly background) has a weight,
not a large learning rate, for a step's rate also moves what other tasks left in the momentum.
All tasks of a modality have inputs of one size, for they share its tokens' positions.
"""

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


def columns(corpus: str, kind: str, *, inputs: str, target: str, files: str) -> Source:
    """Two columns of one of a corpus's manifests."""
    return Source(
        uri=f"raw/{corpus}",
        format="jsonl",
        options={"manifest": f"{kind}.jsonl", "input": inputs, "target": target, "files": files},
        maker=corpus,
    )


DIGIT = Task(
    name="digit",
    source=Source(uri="raw/digits", format="image_folder", maker="digits"),
    inputs=PICTURE,
    targets=LabelFeature(classes=DIGITS),
    metrics=("accuracy", "top5_accuracy", "log_perplexity"),
    baseline="majority_class",
    batch_size=32,
    num_steps=500,
    learning_rate=0.1,
    warmup_steps=25,
)

DIGIT_SET = Task(
    name="digit_set",
    source=columns("canvases", "digits", inputs="image", target="digits", files="image"),
    inputs=PICTURE,
    targets=MultiLabelFeature(classes=DIGITS),
    metrics=("mean_average_precision", "f1"),
    baseline="label_frequency",
    batch_size=32,
    num_steps=2_000,
    learning_rate=0.1,
    warmup_steps=100,
)

DIGIT_PAIR = Task(
    name="digit_pair",
    source=columns("canvases", "pairs", inputs="image", target="pair", files="image"),
    inputs=PICTURE,
    targets=LabelsFeature(parts={"left": DIGITS, "right": DIGITS}),
    metrics=("part_accuracy", "exact"),
    baseline="majority_class",
    batch_size=32,
    num_steps=1_000,
    learning_rate=0.1,
    warmup_steps=50,
)

DIGIT_BOX = Task(
    name="digit_box",
    source=columns("canvases", "boxes", inputs="image", target="box", files="image"),
    inputs=PICTURE,
    targets=NumbersFeature(names=("left", "top", "right", "bottom"), low=0.0, high=SIDE),
    metrics=("box_iou", "mean_squared_error"),
    baseline="mean_value",
    batch_size=32,
    loss_weight=5.0,
    num_steps=500,
    learning_rate=0.1,
    warmup_steps=25,
)

DIGIT_MASK = Task(
    name="digit_mask",
    source=columns("canvases", "masks", inputs="image", target="mask", files="image,mask"),
    inputs=PICTURE,
    targets=MaskFeature(height=SIDE, width=SIDE, classes=("background", *DIGITS)),
    metrics=("mean_iou", "element_accuracy"),
    baseline="majority_element",
    batch_size=32,
    loss_weight=10.0,
    num_steps=1_000,
    learning_rate=0.1,
    warmup_steps=50,
)

MOTION_DIRECTION = Task(
    name="motion_direction",
    source=columns(
        "moving_digits", "directions", inputs="video", target="direction", files="video"
    ),
    inputs=CLIP,
    targets=LabelFeature(
        classes=(
            "right",
            "down right",
            "down",
            "down left",
            "left",
            "up left",
            "up",
            "up right",
        )
    ),
    metrics=CLASS_METRICS,
    baseline="majority_class",
    batch_size=32,
    num_steps=250,
    learning_rate=0.1,
    warmup_steps=12,
)

MOTION_IDENTITY = Task(
    name="motion_identity",
    source=columns("moving_digits", "identities", inputs="video", target="digit", files="video"),
    inputs=CLIP,
    targets=LabelFeature(classes=DIGITS),
    metrics=CLASS_METRICS,
    baseline="majority_class",
    batch_size=32,
    num_steps=1_000,
    learning_rate=0.1,
    warmup_steps=50,
)

SPOKEN_DIGIT = Task(
    name="spoken_digit",
    source=columns("spoken_digits", "digits", inputs="audio", target="digit", files="audio"),
    inputs=SOUND,
    targets=LabelFeature(classes=DIGITS),
    metrics=CLASS_METRICS,
    baseline="majority_class",
    batch_size=32,
    augment=(MASKED,),
    mixup=0.3,
    drop_layer=0.3,
    num_steps=500,
    learning_rate=0.1,
    warmup_steps=25,
)

SPEAKING_VOICE = Task(
    name="speaking_voice",
    source=columns("spoken_digits", "voices", inputs="audio", target="voice", files="audio"),
    inputs=SOUND,
    targets=LabelFeature(
        classes=("alex", "andy", "annie", "croak", "grandma", "klatt", "storm", "whisper")
    ),
    metrics=CLASS_METRICS,
    baseline="majority_class",
    batch_size=32,
    augment=(MASKED,),
    mixup=0.3,
    drop_layer=0.3,
    num_steps=50,
    learning_rate=0.1,
    warmup_steps=5,
)

TASKS = (
    DIGIT,
    DIGIT_SET,
    DIGIT_PAIR,
    DIGIT_BOX,
    DIGIT_MASK,
    MOTION_DIRECTION,
    MOTION_IDENTITY,
    SPOKEN_DIGIT,
    SPEAKING_VOICE,
)
