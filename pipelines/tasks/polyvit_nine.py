"""The nine data sets that PolyViT was published with, for those who have them.

Likhosherstov et al., arXiv:2111.12993, and its released configuration: five of pictures, two of
videos, two of sounds. Put each below the data folder at `raw/<name>/<split>`: pictures as
`<class>/<name>.jpg`, videos and sounds named by a JSONL manifest with the columns `file` and
`label` (`labels`, a list, for AudioSet). Classes are numbers from 0. Learning rates, momentum,
batch sizes, steps, warm-ups and the heads' first weights are those of the tasks' own runs; the
pictures' common warm-up stands at the first of them.
"""

from pipelines.modalities.audio import AudioFeature
from pipelines.modalities.image import ImageFeature
from pipelines.modalities.label import LabelFeature
from pipelines.modalities.multilabel import MultiLabelFeature
from pipelines.modalities.video import VideoFeature
from pipelines.task import Augmentation, Source, Task

PICTURE = ImageFeature(height=384, width=384, channels=3)
CLIP = VideoFeature(height=224, width=224, channels=3, num_frames=32, frame_step=2, min_frames=4)
SOUND = AudioFeature(
    representation="log_mel",
    num_bins=128,
    frame_ms=25.0,
    hop_ms=10.0,
    num_frames=800,
    max_s=12.0,
    standard="corpus",
)
CLIP_CHANGES = (
    Augmentation(name="zoom", settings={"low": 0.9, "high": 1.33}),
    Augmentation(name="color_jitter", settings={"prob": 0.8}),
    Augmentation(name="gray", settings={"prob": 0.1}),
    Augmentation(name="flip"),
)
SOUND_CHANGES = (Augmentation(name="spec_augment"),)


def numbers(count: int) -> tuple[str, ...]:
    """Class names "0" .. "count - 1"."""
    return tuple(str(number) for number in range(count))


def picture_task(
    name: str, *, num_classes: int, num_steps: int, learning_rate: float = 0.03, warmup: int = 0
) -> Task:
    """Classes of pictures, each a yes or no by itself (sigmoid), as the released code has them."""
    return Task(
        name=name,
        source=Source(uri=f"raw/{name}", format="image_folder"),
        inputs=PICTURE,
        targets=LabelFeature(classes=numbers(num_classes)),
        loss="sigmoid_cross_entropy",
        metrics=("precision_at_1", "top5_accuracy"),
        baseline="majority_class",
        batch_size=512,
        num_steps=num_steps,
        learning_rate=learning_rate,
        momentum=0.9,
        head_init="lecun_normal",
        warmup_steps=warmup,
        augment=(Augmentation(name="random_crop_flip", settings={"min_area": 0.05}),),
    )


def media_source(name: str, target: str) -> Source:
    """A JSONL manifest that names files."""
    options = {"input": "file", "target": target, "files": "file"}
    return Source(uri=f"raw/{name}", format="jsonl", options=options)


def clip_task(
    name: str, *, num_classes: int, num_steps: int, learning_rate: float, warmup: int
) -> Task:
    """Classes of video clips."""
    return Task(
        name=name,
        source=media_source(name, "label"),
        inputs=CLIP,
        targets=LabelFeature(classes=numbers(num_classes)),
        metrics=("accuracy", "top5_accuracy", "log_perplexity"),
        baseline="majority_class",
        batch_size=64,
        num_steps=num_steps,
        learning_rate=learning_rate,
        momentum=0.9,
        head_init="zeros",
        warmup_steps=warmup,
        augment=CLIP_CHANGES,
    )


VGGSOUND = Task(
    name="vggsound",
    source=media_source("vggsound", "label"),
    inputs=SOUND,
    targets=LabelFeature(classes=numbers(309)),
    metrics=("accuracy", "top5_accuracy", "mean_average_precision", "log_perplexity"),
    baseline="majority_class",
    batch_size=64,
    num_steps=134_700,
    learning_rate=0.5,
    momentum=0.9,
    head_init="zeros",
    warmup_steps=6_735,
    augment=SOUND_CHANGES,
    mixup=0.3,
    drop_layer=0.3,
)

AUDIOSET = Task(
    name="audioset",
    source=media_source("audioset", "labels"),
    inputs=SOUND,
    targets=MultiLabelFeature(classes=numbers(527)),
    metrics=("mean_average_precision", "f1"),
    baseline="label_frequency",
    batch_size=64,
    num_steps=15_900,
    learning_rate=0.5,
    momentum=0.9,
    head_init="zeros",
    warmup_steps=795,
    augment=SOUND_CHANGES,
    mixup=0.3,
    drop_layer=0.3,
)

TASKS = (
    picture_task("imagenet", num_classes=1000, num_steps=20_000, warmup=500),
    picture_task("cifar100", num_classes=100, num_steps=10_000),
    picture_task("cifar10", num_classes=10, num_steps=10_000),
    picture_task("pets", num_classes=37, num_steps=500),
    picture_task("resisc45", num_classes=45, num_steps=2_500, learning_rate=0.1),
    clip_task("kinetics400", num_classes=400, num_steps=100_680, learning_rate=0.1, warmup=8_390),
    clip_task("moments", num_classes=339, num_steps=123_640, learning_rate=0.25, warmup=30_910),
    VGGSOUND,
    AUDIOSET,
)
