"""An example of what a registered model takes: a row for each of its tasks."""

import base64

import numpy as np
import pandas as pd

from mmtrain.export import Bundle
from pipelines import modalities
from pipelines.modalities.audio import AudioFeature, to_wav
from pipelines.modalities.image import ImageFeature, to_png
from pipelines.modalities.video import VideoFeature


def input_example(bundle: Bundle) -> pd.DataFrame:
    """A row for each task: a digit as text, a black picture or clip, half a second of silence."""
    rows = []
    for name, task in bundle.card.tasks.items():
        feature = task.inputs
        if isinstance(feature, ImageFeature):
            shape = (feature.height, feature.width, 3)
            value = base64.b64encode(to_png(np.zeros(shape, dtype=np.uint8))).decode()
        elif isinstance(feature, VideoFeature):
            value = base64.b64encode(_grey_clip(feature)).decode()
        elif isinstance(feature, AudioFeature):
            silence = np.zeros(feature.sample_rate_hz // 2, dtype=np.float32)
            value = base64.b64encode(to_wav(silence, rate_hz=feature.sample_rate_hz)).decode()
        else:
            value = "7"
        rows.append({"task": name, "input": value})
    return pd.DataFrame(rows)


def _grey_clip(feature: VideoFeature) -> bytes:
    """An animated picture, long enough to be a clip; equal frames would be merged into one."""
    levels = np.arange(feature.num_frames * feature.frame_step) * 16 % 256
    shape = (feature.height, feature.width, feature.channels)
    frames = np.stack([np.full(shape, level, dtype=np.uint8) for level in levels])
    decode = modalities.load("video").decode
    return decode(frames, feature=feature, vocabulary=None)
