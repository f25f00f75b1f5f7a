import pickle
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import UnknownNameError
from pipelines.vocabulary import EOS_ID, PAD_ID, Vocabulary, VocabularyError

TEXTS = [
    "Peru, Germany, and France",
    "Peru, Deutschland und Frankreich",
    "(S (NP DT NN ) (VP VBD (NP DT NN ) ) )",
    "in 3 days",
    "May 3, 1999",
] * 3
COMMANDS = ("to_english", "to_tree")
VOCABULARY = Vocabulary.train(TEXTS, size=310, commands=COMMANDS)


def tokens(text: str) -> list[str]:
    return [VOCABULARY.decode([token]) for token in VOCABULARY.encode(text)]


def test_reserved_ids_are_padding_end_commands_in_order():
    assert (PAD_ID, EOS_ID) == (0, 1)
    assert VOCABULARY.command_id("to_english") == 2
    assert VOCABULARY.command_id("to_tree") == 3


def test_size_is_what_was_asked():
    assert VOCABULARY.size == 310


def test_digits_stand_alone():
    assert tokens("1999") == ["1", "9", "9", "9"]
    big = Vocabulary.train(["1999 1999 1999 1999"] * 50, size=600, commands=())
    assert len(big.encode("1999")) == 4


def test_brackets_go_with_their_label():
    assert tokens("(S (NP DT ) )")[:2] == ["(S", "(NP"]


def test_a_word_has_the_same_id_first_and_later():
    assert VOCABULARY.encode("Peru")[0] == VOCABULARY.encode("days Peru")[-1]


@given(st.text())
def test_every_text_comes_back(text: str):
    ids = VOCABULARY.encode(text)
    assert VOCABULARY.decode(ids) == text
    assert all(id_ >= 4 for id_ in ids)


@pytest.mark.parametrize("text", ["<eos>", "<pad>", "<to_english>", "a<eos>b"])
def test_reserved_names_written_in_a_text_are_plain_text(text: str):
    ids = VOCABULARY.encode(text)
    assert min(ids) >= 4
    assert VOCABULARY.decode(ids) == text


def test_decoding_leaves_out_reserved_ids():
    assert VOCABULARY.decode([2, *VOCABULARY.encode("in 3 days"), EOS_ID, PAD_ID]) == "in 3 days"


def test_training_does_not_depend_on_the_order_of_texts():
    shuffled = random.Random(0).sample(TEXTS, len(TEXTS))
    assert Vocabulary.train(shuffled, size=310, commands=COMMANDS) == VOCABULARY


def test_other_commands_or_texts_give_another_digest():
    other_commands = Vocabulary.train(TEXTS, size=310, commands=("to_french", "to_tree"))
    other_texts = Vocabulary.train(TEXTS[:-1], size=310, commands=COMMANDS)
    digests = {VOCABULARY.digest, other_commands.digest, other_texts.digest}
    assert len(digests) == 3


def test_saved_is_loaded_again(tmp_path):
    path = tmp_path / "deep" / "vocabulary.json"
    VOCABULARY.save(path)
    loaded = Vocabulary.load(path)
    assert loaded == VOCABULARY
    assert loaded.digest == VOCABULARY.digest
    assert [file.name for file in path.parent.iterdir()] == ["vocabulary.json"]


def test_pickled_is_the_same():
    VOCABULARY.encode("in 3 days")
    copy = pickle.loads(pickle.dumps(VOCABULARY))
    assert copy == VOCABULARY
    assert copy.encode("in 3 days") == VOCABULARY.encode("in 3 days")


def test_too_small_a_size_says_which_is_enough():
    with pytest.raises(VocabularyError, match="use 260 or more"):
        Vocabulary.train(TEXTS, size=100, commands=COMMANDS)


def test_unknown_command_names_the_nearest():
    with pytest.raises(UnknownNameError, match="to_english"):
        VOCABULARY.command_id("to_englisch")


def test_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(VocabularyError, match="build the corpora first"):
        Vocabulary.load(tmp_path / "none.json")


@pytest.mark.parametrize("contents", ["", "[]", "{}", '{"tokenizer": {}}'])
def test_file_that_is_no_vocabulary_is_refused(tmp_path, contents: str):
    (tmp_path / "v.json").write_text(contents)
    with pytest.raises(VocabularyError, match="not a vocabulary"):
        Vocabulary.load(tmp_path / "v.json")
