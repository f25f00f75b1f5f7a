"""Examples of what a model takes, made up: a row for each task."""

import base64

import pandas as pd

from mmtrain.bundle import Bundle


def input_example(bundle: Bundle) -> pd.DataFrame:
    """A row for each task: a text or class, a black picture or clip, half a second of silence."""
    rows = []
    for name, task in bundle.card.tasks.items():
        value = task.inputs.example()
        shown = base64.b64encode(value).decode() if isinstance(value, bytes) else value
        rows.append({"task": name, "input": shown})
    return pd.DataFrame(rows)
