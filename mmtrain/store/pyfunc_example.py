"""Examples of what a model takes, made up: a raw value of a feature, a row for each task."""

import base64

import numpy as np
import pandas as pd

from mmtrain.bundle import Bundle
from pipelines import modalities
from pipelines.modalities import Feature
from pipelines.modalities.audio import AudioFeature, to_wav
from pipelines.modalities.image import ImageFeature, to_png
from pipelines.modalities.label import LabelFeature
from pipelines.modalities.video import VideoFeature


def input_example(bundle: Bundle) -> pd.DataFrame:
    """A row for each task: "7" or the first class, a black picture or clip, half a second of
    silence.
    """  # fmt: skip
    rows = []
    for name, task in bundle.card.tasks.items():
        value = example_value(task.inputs)
        shown = base64.b64encode(value).decode() if isinstance(value, bytes) else value
        rows.append({"task": name, "input": shown})
    return pd.DataFrame(rows)


def example_value(feature: Feature) -> str | bytes:
    """A raw value of a feature: a text, a class, or a file's bytes."""
    if isinstance(feature, ImageFeature):
        return to_png(np.zeros((feature.height, feature.width, 3), dtype=np.uint8))
    if isinstance(feature, VideoFeature):
        return _grey_clip(feature)
    if isinstance(feature, AudioFeature):
        silence = np.zeros(feature.sample_rate_hz // 2, dtype=np.float32)
        return to_wav(silence, rate_hz=feature.sample_rate_hz)
    return feature.classes[0] if isinstance(feature, LabelFeature) else "7"


def _grey_clip(feature: VideoFeature) -> bytes:
    """An animated picture, long enough to be a clip; equal frames would be merged into one."""
    levels = np.arange(feature.num_frames * feature.frame_step) * 16 % 256
    shape = (feature.height, feature.width, feature.channels)
    frames = np.stack([np.full(shape, level, dtype=np.uint8) for level in levels])
    decode = modalities.load("video").decode
    return decode(frames, feature=feature, vocabulary=None)
