"""Text classification: which language a name of CLDR is in. A PolyViT reads text as well."""

from pipelines.modalities.label import LabelFeature
from pipelines.modalities.text import TextFeature
from pipelines.task import Source, Task

NAME_LANGUAGE = Task(
    name="name_language",
    source=Source(
        uri="raw/name_languages",
        format="tsv",
        options={"input": "name", "target": "language"},
        maker="name_languages",
    ),
    inputs=TextFeature(max_tokens=32),
    targets=LabelFeature(classes=("en", "de", "fr")),
    metrics=("accuracy", "log_perplexity"),
    baseline="majority_class",
    batch_size=32,
    num_steps=500,
    learning_rate=0.03,
    warmup_steps=25,
)

TASKS = (NAME_LANGUAGE,)
