from pathlib import Path

import pytest

from pipelines.modalities import named_by_files


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
