from collections import Counter

import numpy as np
import pytest

from pipelines.corpora.treebank import Grammar
from pipelines.errors import BadExampleError
from pipelines.modalities import tree
from pipelines.modalities.tree import (
    Tree,
    TreeFeature,
    delinearise,
    labelled_spans,
    linearise,
    parse_brackets,
    read_linearised,
    to_brackets,
)
from pipelines.vocabulary import EOS_ID, Vocabulary

BRACKETS = "(S (NP (DT the) (NN dog)) (VP (VBD saw) (NP (DT a) (NN cat))))"
LINEAR = "(S (NP DT NN ) (VP VBD (NP DT NN ) ) )"
SPANS = {("S", 0, 5): 1, ("NP", 0, 2): 1, ("VP", 2, 5): 1, ("NP", 3, 5): 1}


def test_brackets_are_read_and_written():
    read = parse_brackets(BRACKETS)
    assert read.words() == ("the", "dog", "saw", "a", "cat")
    assert read.children[0] == Tree("NP", (Tree("DT", word="the"), Tree("NN", word="dog")))
    assert to_brackets(read) == BRACKETS


def test_unlabelled_outer_brackets_are_taken_off():
    assert parse_brackets(f"( {BRACKETS} )") == parse_brackets(BRACKETS)


def test_linearised_leaves_the_words_out():
    assert linearise(parse_brackets(BRACKETS)) == LINEAR


def test_sentence_and_linearised_give_the_exact_tree_back():
    grammar = Grammar(np.random.default_rng(3))
    for _ in range(300):
        drawn = grammar.sentence()
        sentence = " ".join(drawn.words())
        assert delinearise(linearise(drawn), sentence=sentence) == drawn
        assert parse_brackets(to_brackets(drawn)) == drawn


def test_spans_leave_out_parts_of_speech():
    assert labelled_spans(parse_brackets(BRACKETS)) == Counter(SPANS)


def test_linearised_tree_has_the_spans_of_the_full_one():
    assert labelled_spans(read_linearised(LINEAR)) == Counter(SPANS)


def test_spans_count_no_punctuation_and_no_root():
    with_comma = "(TOP (S (PP IN (NP NNP ) ) , (NP DT NN ) (VP VBD ) . ) )"
    assert labelled_spans(read_linearised(with_comma)) == Counter(
        {("S", 0, 5): 1, ("PP", 0, 2): 1, ("NP", 1, 2): 1, ("NP", 2, 4): 1, ("VP", 4, 5): 1}
    )


def test_particles_count_as_adverbs_and_function_tags_are_cut():
    assert labelled_spans(read_linearised("(S-TPC (PRT RP ) )")) == Counter(
        {("S", 0, 1): 1, ("ADVP", 0, 1): 1}
    )


def test_same_constituent_twice_counts_twice():
    assert labelled_spans(read_linearised("(NP (NP NN ) )")) == Counter({("NP", 0, 1): 2})


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("(S (NP DT NN", "(S (NP DT NN ) )"),
        ("(S (NP DT NN ) ) ) )", "(S (NP DT NN ) )"),
        ("(S (NP ) (VP VBD ) )", "(S (VP VBD ) )"),
        ("DT NN", "(TOP DT NN )"),
        ("(NP NN ) (VP VBD )", "(TOP (NP NN ) (VP VBD ) )"),
        ("(S(NP DT)(VP VBD))", "(S (NP DT ) (VP VBD ) )"),
    ],
)
def test_malformed_output_is_read_as_the_nearest_tree(written: str, read: str):
    assert linearise(read_linearised(written)) == read


@pytest.mark.parametrize("written", ["", ")", "( ( (", "(S"])
def test_output_without_parts_of_speech_has_no_spans(written: str):
    assert labelled_spans(read_linearised(written)) == Counter()


@pytest.mark.parametrize(
    ("brackets", "reason"),
    [
        ("(S (NP (NN dog))", "unbalanced brackets"),
        ("(S (NP (NN dog", "unbalanced brackets"),
        ("(S (NN dog)))", "not one tree"),
        ("S (NN dog)", "no opening bracket"),
        ("(S )", "neither word nor children"),
        ("(S (NP (NN dog)) barks)", "word beside constituents"),
        ("(NN dog cat)", "more than a word"),
        ("(" * 300 + "NN dog" + ")" * 300, "too deep: over 200"),
        ("", "empty text"),
        (b"\xff(S (NN dog))", "not UTF-8: byte 0 is 0xff"),
    ],
)
def test_bad_brackets_are_refused_with_the_reason(brackets: object, reason: str):
    with pytest.raises(BadExampleError, match=reason):
        tree.text_of(brackets, feature=TreeFeature())


@pytest.mark.parametrize("sentence", ["the dog saw a", "the dog saw a cat today"])
def test_sentence_of_another_length_is_refused(sentence: str):
    with pytest.raises(BadExampleError, match="5 parts of speech"):
        delinearise(LINEAR, sentence=sentence)


def test_encoded_ends_in_eos_and_decodes_to_the_linearised_form():
    vocabulary = Vocabulary.train([LINEAR] * 5, size=300, commands=())
    array = tree.encode(BRACKETS, feature=TreeFeature(), vocabulary=vocabulary)
    assert array.dtype == np.int32
    assert array[-1] == EOS_ID
    assert len(array) == 14  # a symbol is a token: 4 open, 4 close, 5 tags; EOS
    assert tree.decode(array, feature=TreeFeature(), vocabulary=vocabulary) == LINEAR


def test_longer_than_the_feature_allows_is_refused():
    vocabulary = Vocabulary.train([LINEAR] * 5, size=300, commands=())
    with pytest.raises(BadExampleError, match="14 tokens, at most 5"):
        tree.encode(BRACKETS, feature=TreeFeature(max_tokens=5), vocabulary=vocabulary)


def test_the_model_sees_trees_as_text():
    assert TreeFeature().net == "text"
