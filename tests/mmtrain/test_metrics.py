"""Metrics against values worked out by hand."""

import math

import pytest

from mmtrain.metrics import Facts, MetricError, load_metric, metric_names
from pipelines.errors import UnknownNameError


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
    lower = {name for name in metric_names() if not load_metric(name).higher_is_better}
    assert lower == {"wer", "log_perplexity"}
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
