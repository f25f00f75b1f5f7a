"""Trivial predictors on examples small enough to check by eye."""

import math

import pytest

from mmtrain.baselines import BigramModel, Pair, load_baseline
from pipelines.errors import UnknownNameError


def test_majority_class_ranks_by_frequency_then_name():
    train = [Pair("", target) for target in ("7", "3", "3", "1")]
    assert load_baseline("majority_class")(train)("anything") == ("3", "1", "7")


def test_most_frequent_target_gives_one_answer():
    train = [Pair("a", "x"), Pair("b", "y"), Pair("c", "y")]
    assert load_baseline("most_frequent_target")(train)("a") == ("y",)


def test_copy_source_gives_the_input():
    assert load_baseline("copy_source")([])("Peru") == ("Peru",)


def test_right_branching_tree_nests_to_the_right_with_trained_labels():
    train = [
        Pair("the dog slept", "(S (NP DT NN ) (VP VBD ) )"),
        Pair("the cat saw a dog", "(S (NP DT NN ) (VP VBD (NP DT NN ) ) )"),
    ]
    answer = load_baseline("right_branching_tree")(train)
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


def test_bigram_of_classes_is_the_share_of_each():
    score = BigramModel([[0], [0], [1]], vocab_size=2).score([[0], [1]])
    assert score.num_correct == 1
    assert score.nll == pytest.approx(-math.log((2 + 3 / 5) / 4) - math.log((1 + 2 / 5) / 4))
