"""Trivial predictors on examples small enough to check by eye."""

import math

import numpy as np
import pytest

from mmtrain.evaluate.baselines import (
    BaselineError,
    BigramModel,
    Pair,
    check_baseline,
    load_baseline,
)
from mmtrain.models.config import TaskSpec
from pipelines.errors import UnknownNameError
from pipelines.modalities.label import LabelFeature
from pipelines.modalities.mask import MaskFeature
from pipelines.modalities.numbers import NumbersFeature
from pipelines.modalities.text import TextFeature


def spec(**fields: object) -> TaskSpec:
    return TaskSpec(name="any", input_net="image", output_net="label", **fields)  # type: ignore[arg-type]


def test_majority_class_is_the_share_of_each_class():
    logits = load_baseline("majority_class").fit(
        [np.array([0]), np.array([0]), np.array([1])], spec=spec(num_outputs=3)
    )
    assert np.exp(logits) == pytest.approx([(2 + 3 / 6) / 4, (1 + 2 / 6) / 4, (1 / 6) / 4])


def test_majority_class_of_parts_is_that_of_each_part():
    targets = [np.array([0, 2]), np.array([1, 2]), np.array([1, 0])]
    logits = load_baseline("majority_class").fit(
        targets, spec=spec(num_outputs=5, output_groups=(2, 3))
    )
    assert (logits[:2].argmax(), logits[2:].argmax()) == (1, 2)
    assert np.exp(logits).sum() == pytest.approx(2.0)


def test_majority_class_gives_the_sigmoid_loss_its_own_scores():
    targets = [np.array([0]), np.array([0]), np.array([1])]
    logits = load_baseline("majority_class").fit(
        targets, spec=spec(num_outputs=2, loss="sigmoid_cross_entropy")
    )
    assert 1 / (1 + np.exp(-logits)) == pytest.approx([(2 + 3 / 5) / 4, (1 + 2 / 5) / 4])


def test_label_frequency_is_the_share_of_examples_with_a_class():
    targets = [np.array([1, 0, 1]), np.array([1, 0, 0])]
    logits = load_baseline("label_frequency").fit(
        targets, spec=spec(num_outputs=3, loss="sigmoid_cross_entropy")
    )
    assert 1 / (1 + np.exp(-logits)) == pytest.approx([3 / 4, 1 / 4, 2 / 4])


def test_mean_value_is_the_mean_of_each_value():
    targets = [np.array([0.0, 1.0]), np.array([0.5, 0.0])]
    assert load_baseline("mean_value").fit(targets, spec=spec(num_outputs=2)).tolist() == [
        0.25,
        0.5,
    ]


def test_majority_element_is_the_usual_class_at_each_pixel():
    targets = [np.array([[0, 2]]), np.array([[1, 2]]), np.array([[1, 0]])]
    logits_YXV = load_baseline("majority_element").fit(targets, spec=spec(num_outputs=3))
    assert logits_YXV.argmax(-1).tolist() == [[1, 2]]
    assert np.exp(logits_YXV[0, 0]) == pytest.approx([2 / 6, 3 / 6, 1 / 6])


FEATURES = {
    "label": LabelFeature(classes=("a", "b")),
    "mask": MaskFeature(height=2, width=2, classes=("a", "b")),
    "numbers": NumbersFeature(names=("a",)),
    "text": TextFeature(),
}


@pytest.mark.parametrize(
    ("name", "feature", "fitting"),
    [
        ("mean_value", MaskFeature(height=2, width=2, classes=("a", "b")), "majority_element"),
        ("majority_class", TextFeature(), "copy_source"),
        ("copy_source", LabelFeature(classes=("a", "b")), "majority_class"),
    ],
)
def test_a_baseline_that_does_not_take_the_targets_is_refused(name, feature, fitting):
    refusal = f"'{name}' does not take {feature.modality}.*{fitting}"
    with pytest.raises(BaselineError, match=refusal):
        check_baseline(name, feature=feature, task="any")


def test_an_unknown_baseline_of_a_task_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="mean_value"):
        check_baseline("mean_values", feature=NumbersFeature(names=("a",)), task="any")


def test_most_frequent_target_gives_one_answer():
    train = [Pair("a", "x"), Pair("b", "y"), Pair("c", "y")]
    assert load_baseline("most_frequent_target").fit(train)("a") == ("y",)


def test_copy_source_gives_the_input():
    assert load_baseline("copy_source").fit([])("Peru") == ("Peru",)


def test_right_branching_tree_nests_to_the_right_with_trained_labels():
    train = [
        Pair("the dog slept", "(S (NP DT NN ) (VP VBD ) )"),
        Pair("the cat saw a dog", "(S (NP DT NN ) (VP VBD (NP DT NN ) ) )"),
    ]
    answer = load_baseline("right_branching_tree").fit(train)
    assert answer("the dog slept") == ("(S DT (NP NN (NP VBD ) ) )",)
    assert answer("zebra") == ("(S DT )",)  # unseen word: DT is first among the most frequent


def test_an_unknown_baseline_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="copy_source"):
        load_baseline("copy_sources")


def test_bigram_model_scores_as_counted_by_hand():
    model = BigramModel([[5, 6], [5, 6], [5, 7]], vocab_size=10)
    score = model.score([[5, 7]])
    alone_5, alone_7 = 4 / 16, 2 / 16
    expected = -math.log((3 + alone_5) / 4) - math.log((1 + alone_7) / 4)
    assert score.nll == pytest.approx(expected)
    assert (score.num_correct, score.num_targets) == (1, 2)  # 6 is likelier after 5


def test_bigram_probabilities_sum_to_one():
    model = BigramModel([[1, 2, 1], [2, 2]], vocab_size=4)
    for before in (1, 2, 3):
        nlls = [
            model.score([[before, token]]).nll - model.score([[before]]).nll for token in range(4)
        ]
        assert sum(math.exp(-nll) for nll in nlls) == pytest.approx(1.0)
