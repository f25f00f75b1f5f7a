"""A metric and a baseline of a user's own file measure a model beside the shipped ones."""

import pytest

from mmtrain.bundle import bundle_task, save_bundle
from mmtrain.evaluate.baselines import BaselineError, check_baseline
from mmtrain.evaluate.evaluate import evaluate
from mmtrain.evaluate.metrics import MetricError, check_metrics
from mmtrain.evaluate.results import to_metrics
from mmtrain.predict.predictor import Predictor
from mmtrain.registry.promotion import to_measurements
from pipelines.modalities.text import TextFeature
from tests.mmtrain.example_bundle import LINEAGE, example_model, example_specs
from tests.mmtrain.example_corpus import TASKS, build_example_corpora, example_vocabulary

OWN = """
from functools import partial
import numpy as np
from mmtrain.bundle import bundle_task, save_bundle
from mmtrain.evaluate.baselines import Baseline
from mmtrain.evaluate.metrics import metric

@metric("dark share", of=("label",))
def dark_share(facts):
    return 100.0 * sum(said == "dark" for said in facts.predictions) / len(facts.predictions)

@metric("accuracy of mine")
def accuracy(facts):
    return 0.0

@partial(Baseline, of=("label",))
def last_class(targets, *, spec):
    scores = np.zeros(spec.num_outputs)
    scores[[*targets][-1]] = 1.0
    return scores
"""


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    return file


def test_a_metric_and_a_baseline_of_a_users_own_file_are_measured(own, tmp_path):
    task = TASKS["shades"].model_copy(
        update={"metrics": (f"{own}:dark_share", "accuracy"), "baseline": f"{own}:last_class"}
    )
    check_metrics(task.metrics, task.targets, task="shades")
    check_baseline(task.baseline, feature=task.targets, task="shades")
    build_example_corpora(tmp_path / "data", vocabulary=example_vocabulary())  # by other metrics
    bundle = save_bundle(
        tmp_path / "bundle",
        model=example_model().config,
        tasks={
            name: bundle_task(task if name == "shades" else TASKS[name], spec=spec)
            for name, spec in example_specs().items()
        },
        state=example_model().state_dict(),
        vocabulary=example_vocabulary(),
        lineage=LINEAGE,
    )
    predictor = Predictor.load(bundle)
    results = evaluate(predictor, data_dir=tmp_path / "data", tasks=("shades",))
    own_score, accuracy = results.tasks["shades"].splits[0].scores
    assert (own_score.metric, own_score.label) == ("dark_share", "dark share")
    assert own_score.baseline == 100.0  # the last training picture is dark
    assert accuracy.baseline == 50.0
    measured = to_measurements(to_metrics(results))
    assert [one.name for one in measured] == ["shades.dark_share", "shades.accuracy"]


def test_what_does_not_fit_is_refused(own):
    with pytest.raises(MetricError, match="not of text targets; it takes label"):
        check_metrics([f"{own}:dark_share"], TextFeature(), task="t")
    with pytest.raises(MetricError, match="has the name of a shipped one"):
        check_metrics([f"{own}:accuracy"], TASKS["shades"].targets, task="t")
    with pytest.raises(BaselineError, match="does not take text targets"):
        check_baseline(f"{own}:last_class", feature=TextFeature(), task="t")
