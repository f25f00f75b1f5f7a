"""Metrics against values worked out by hand."""

import math

import numpy as np
import pytest
from sklearn import metrics as peer

from mmtrain.evaluate.metrics import SHIPPED, Facts, MetricError, check_metrics, load_metric
from pipelines.errors import UnknownNameError
from pipelines.modalities.label import LabelFeature
from pipelines.modalities.numbers import BOX, NumbersFeature
from pipelines.modalities.text import TextFeature


def score(name: str, references: list[str], predictions: list[str], **facts: object) -> float:
    return load_metric(name)(Facts(tuple(references), tuple(predictions), **facts))  # type: ignore[arg-type]


def test_wer_counts_word_errors_over_the_whole_split():
    # 1 substitution + 1 deletion + 2 insertions over 3 + 1 words
    assert score("wer", ["one two three", "four"], ["one too", "four five six"]) == 100.0


def test_wer_of_an_empty_prediction_is_all_deletions():
    assert score("wer", ["one two"], [""]) == 100.0


def test_accuracy_and_top5_count_the_first_and_the_first_five():
    ranked = (("a", "b"), ("b", "c", "d", "e", "a", "f"), ("c", "d", "e", "f", "g", "a"))
    assert score("accuracy", ["a", "a", "a"], ["a", "b", "c"]) == pytest.approx(100 / 3)
    assert score("top5_accuracy", ["a"] * 3, ["a", "b", "c"], ranked=ranked) == pytest.approx(
        200 / 3
    )


def test_bleu_of_one_word_changed_in_six():
    # precisions 5/6, 3/5, 1/4 and 0 of 3, smoothed to 1/(2*3): fourth root of their product
    value = score("bleu", ["the cat sat on the mat"], ["the cat sat at the mat"])
    assert value == pytest.approx(100 * (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25)


def test_chrf_is_100_for_equal_and_0_for_disjoint_text():
    assert score("chrf", ["Peru"], ["Peru"]) == pytest.approx(100.0)
    assert score("chrf", ["Peru"], ["xyz"]) == 0.0


def test_exact_counts_whole_answers():
    assert score("exact", ["a b", "c"], ["a b", "c c"]) == 50.0


def test_token_metrics_divide_sums_by_true_tokens():
    sums = {"nll": 4 * math.log(2), "num_correct": 3, "num_targets": 4}
    assert score("token_accuracy", ["x"], ["x"], **sums) == 75.0
    assert score("log_perplexity", ["x"], ["x"], **sums) == pytest.approx(math.log(2))


def test_bracket_f1_counts_labelled_spans_without_root_and_tags():
    true = "(S (NP DT NN ) (VP VBD (NP DT NN ) (PP IN (NP NN ) ) ) )"
    wrong = "(S (NP DT NN ) (VP VBD (NP (NP DT NN ) (PP IN (NP NN ) ) ) ) )"
    # true has S NP VP NP PP NP; predicted one NP more: 6 of 6 and 6 of 7
    assert score("bracket_f1", [true], [wrong]) == pytest.approx(100 * 12 / 13)
    assert score("bracket_f1", [true], [true]) == 100.0


def test_bracket_f1_gives_punctuation_no_place():
    assert (
        score("bracket_f1", ["(S (NP NN ) , (VP VBD ) . )"], ["(S (NP NN ) (VP , VBD ) . )"])
        == 100.0
    )


def test_bracket_f1_counts_what_is_no_tree_over_the_words_as_all_wrong():
    good = "(S (NP NN ) (VP VBD ) )"
    # three of three right, then none of three: M = 3, true = 6
    assert score("bracket_f1", [good, good], [good, "(S (NP NN )"]) == pytest.approx(100 * 6 / 11)
    assert score("bracket_f1", [good, good], [good, "(S (NP NN ) )"]) == pytest.approx(100 * 6 / 11)
    assert score("bracket_f1", [good], [""]) == 0.0


def test_repeated_spans_match_once_each():
    twice, once = "(S (NP (NP NN ) ) (VP VB ) )", "(S (NP NN ) (VP VB ) )"
    assert score("bracket_f1", [twice], [once]) == pytest.approx(100 * 6 / 7)


def test_each_metric_says_its_unit_and_direction():
    lower = {name for name in SHIPPED if not load_metric(name).higher_is_better}
    assert lower == {"wer", "log_perplexity", "mean_squared_error"}
    assert load_metric("log_perplexity").unit == "nats"
    assert load_metric("bleu").unit == "%"


def test_an_unknown_metric_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="bracket_f1"):
        load_metric("bracket_f2")
    with pytest.raises(UnknownNameError):
        load_metric("Facts")


def test_no_examples_and_no_teacher_forced_pass_are_said():
    with pytest.raises(MetricError, match="no examples"):
        score("exact", [], [])
    with pytest.raises(MetricError, match="teacher-forced"):
        score("token_accuracy", ["a"], ["a"])


def measured(name: str, scores: object, targets: object) -> float:
    facts = Facts(("x",), ("x",), scores=np.asarray(scores), targets=np.asarray(targets))
    return load_metric(name)(facts)


SCORES = [[0.9, 0.2, 0.6], [0.4, 0.7, 0.5], [0.8, 0.1, 0.3]]
PRESENT = [[1, 0, 0], [0, 1, 1], [0, 0, 1]]


def test_mean_average_precision_of_three_classes():
    # class 0 ranks its one first, class 1 too; class 2 ranks its two second and third
    expected = (1 + 1 + (1 / 2 + 2 / 3) / 2) / 3
    assert measured("mean_average_precision", SCORES, PRESENT) == pytest.approx(100 * expected)


def test_classes_that_no_example_has_do_not_count_in_mean_average_precision():
    absent = [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert measured("mean_average_precision", SCORES, absent) == 100.0
    with pytest.raises(MetricError, match="no example"):
        measured("mean_average_precision", SCORES, np.zeros((3, 3)))


def test_constant_scores_have_the_average_precision_of_the_share():
    present = [[1], [0], [0], [0]]
    assert measured("mean_average_precision", np.full((4, 1), 0.3), present) == pytest.approx(25.0)


def test_f1_is_sklearns_micro_average():
    rng = np.random.default_rng(0)
    scores, present = rng.random((20, 5)), rng.integers(0, 2, (20, 5))
    expected = peer.f1_score(present, scores >= 0.5, average="micro")
    assert measured("f1", scores, present) == pytest.approx(100 * expected)
    assert measured("f1", np.zeros((2, 2)), np.zeros((2, 2))) == 0.0


def test_precision_at_1_counts_best_classes_that_are_there():
    assert measured("precision_at_1", SCORES, PRESENT) == pytest.approx(200 / 3)
    assert measured("precision_at_1", SCORES, [[0], [1], [2]]) == pytest.approx(200 / 3)


def test_part_accuracy_counts_parts():
    assert measured("part_accuracy", [[0, 1], [2, 2]], [[0, 1], [2, 0]]) == 75.0


def test_mean_squared_error_is_over_examples_and_values():
    assert measured("mean_squared_error", [[0.0, 1.0]], [[0.5, 1.0]]) == 0.125
    assert load_metric("mean_squared_error").unit == ""


def test_box_iou_of_halves_equals_and_strangers():
    true = [[0.0, 0.0, 1.0, 1.0]] * 4
    said = [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0], [2.0, 2.0, 3.0, 3.0], [1.0, 1.0, 0.0, 0.0]]
    assert measured("box_iou", said, true) == pytest.approx(100 * (1 + 0.5 + 0 + 0) / 4)


def test_mean_iou_leaves_out_classes_that_are_nowhere():
    said, true = [[[0, 0], [2, 2]]], [[[0, 0], [0, 2]]]
    # class 0: 2 of 3, class 2: 1 of 2, class 1 nowhere
    assert measured("mean_iou", said, true) == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)
    assert measured("mean_iou", said, true) == pytest.approx(
        100 * peer.jaccard_score(np.ravel(true), np.ravel(said), average="macro", labels=[0, 2])
    )
    assert measured("element_accuracy", said, true) == 75.0


@pytest.mark.parametrize(
    ("name", "feature", "says"),
    [
        ("mean_iou", TextFeature(), "takes mask"),
        ("log_perplexity", NumbersFeature(names=("x",)), "no classes"),
        ("box_iou", NumbersFeature(names=("x", "y")), "left, top, right, bottom"),
        ("part_accuracy", LabelFeature(classes=("a", "b")), "takes labels"),
    ],
)
def test_a_metric_that_targets_have_nothing_for_is_refused(name, feature, says):
    with pytest.raises(MetricError, match=says):
        check_metrics((name,), feature, task="any")


def test_metrics_that_fit_pass():
    check_metrics(("box_iou", "mean_squared_error"), NumbersFeature(names=BOX), task="any")
    check_metrics(("f1", "accuracy"), LabelFeature(classes=("a", "b")), task="any")
