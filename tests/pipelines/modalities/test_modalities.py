from pathlib import Path

import numpy as np
import pytest

from pipelines.modalities import collate, named_by_files


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_collated_is_padded_with_zero_to_the_longest(kind):
    padded = collate([np.array([5, 1], kind), np.array([6, 7, 1], kind)])
    assert padded.values.tolist() == [[5, 1, 0], [6, 7, 1]]
    assert padded.lengths.tolist() == [2, 3]
    assert (padded.values.dtype, padded.lengths.dtype) == (kind, np.int32)
    frames = [np.ones((2, 16), kind), np.ones((5, 16), kind)]
    assert collate(frames).values.shape == (2, 5, 16)


def test_collated_of_one_size_is_stacked():
    padded = collate([np.full((2, 3, 1), level, np.uint8) for level in range(4)])
    assert padded.values.shape == (4, 2, 3, 1)
    assert padded.values[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert padded.lengths.tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("values", "modality"),
    [
        (["a.mp4", Path("b.MP4")], "video"),
        (["scan.png"], "image"),
        (["word.wav"], "audio"),
        (["a.png", "b.wav"], None),
        (["Peru, Germany and France"], None),
        ([b"bytes"], None),
        ([], None),
    ],
)
def test_names_of_files_say_the_modality_where_all_agree(values, modality):
    assert named_by_files(values) == modality
