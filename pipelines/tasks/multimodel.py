"""The eight tasks that one MultiModel learns: speech, images, captions, trees and translation.

Their corpora are made offline by `pipelines/corpora`; a scan, a spoken string, a sentence or a
phrase stands in one split only, whatever the task.
"""

from pipelines.modalities.audio import AudioFeature
from pipelines.modalities.image import ImageFeature
from pipelines.modalities.label import LabelFeature
from pipelines.modalities.text import TextFeature
from pipelines.modalities.tree import TreeFeature
from pipelines.task import Source, Task

TEXT_METRICS = ("bleu", "chrf", "exact", "token_accuracy", "log_perplexity")


def translation(source_language: str, target_language: str, *, command: str) -> Task:
    """Translation by two columns of the corpus of phrases; all directions share its rows."""
    return Task(
        name=f"translation_{source_language}_{target_language}",
        source=Source(
            uri="raw/phrases",
            format="tsv",
            splits=("train", "validation", "test", "test_hard"),
            options={"input": source_language, "target": target_language},
            maker="phrases",
        ),
        inputs=TextFeature(max_tokens=64),
        targets=TextFeature(max_tokens=64),
        command=command,
        metrics=TEXT_METRICS,
        baseline="copy_source",
        label_smoothing=0.1,
        batch_tokens=1_200,  # 72 short phrases, or 12 of the longest
        bucket_bounds=(8, 12, 16, 24, 64),
    )


SPEECH_RECOGNITION = Task(
    name="speech_recognition",
    source=Source(
        uri="raw/speech",
        format="jsonl",
        options={"input": "audio", "target": "text", "files": "audio"},
        maker="speech",
    ),
    inputs=AudioFeature(representation="log_mel", num_bins=32, hop_ms=16.0, max_s=2.0),
    targets=TextFeature(max_tokens=16),
    command="to_transcript",
    metrics=("wer", "token_accuracy", "log_perplexity"),
    baseline="most_frequent_target",
    batch_size=36,
    label_smoothing=0.1,
)

IMAGE_CLASSIFICATION = Task(
    name="image_classification",
    source=Source(uri="raw/digits", format="image_folder", maker="digits"),
    inputs=ImageFeature(height=32, width=32, channels=1),
    targets=LabelFeature(classes=tuple("0123456789")),
    metrics=("accuracy", "top5_accuracy", "log_perplexity"),
    baseline="majority_class",
    batch_size=36,
)

IMAGE_CAPTIONING = Task(
    name="image_captioning",
    source=Source(
        uri="raw/captions",
        format="jsonl",
        options={"input": "image", "target": "caption", "files": "image"},
        maker="captions",
    ),
    inputs=ImageFeature(height=48, width=48, channels=1),
    targets=TextFeature(max_tokens=32),
    command="to_caption",
    metrics=TEXT_METRICS,
    baseline="most_frequent_target",
    batch_size=36,
    label_smoothing=0.1,
)

PARSING = Task(
    name="parsing",
    source=Source(uri="raw/treebank", format="brackets", maker="treebank"),
    inputs=TextFeature(max_tokens=64),
    targets=TreeFeature(max_tokens=128),
    command="to_tree",
    metrics=("bracket_f1", "exact", "token_accuracy", "log_perplexity"),
    baseline="right_branching_tree",
    label_smoothing=0.1,
    batch_tokens=2_400,  # 48 short sentences with their trees, or 12 of the longest
    bucket_bounds=(24, 32, 40, 64, 128),
)

TASKS = (
    SPEECH_RECOGNITION,
    IMAGE_CLASSIFICATION,
    IMAGE_CAPTIONING,
    PARSING,
    translation("en", "de", command="to_german"),
    translation("de", "en", command="to_english"),
    translation("en", "fr", command="to_french"),
    translation("fr", "en", command="to_english"),
)
