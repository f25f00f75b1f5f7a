"""Requirements of a promotion: how they are read, and what they refuse."""

import pytest

from mmtrain.registry.promotion import Measurement, Requirement, RequirementError, to_measurements
from pipelines.errors import UnknownNameError

MEASURED = to_measurements(
    {
        "test/speech/wer": 3.1,
        "baseline/speech/wer": 92.8,
        "test/digits/accuracy": 98.7,
        "test/parsing/accuracy": 71.0,
        "test/parsing/log_perplexity": 0.5,
        "test_hard/parsing/accuracy": 2.0,
        "train/parsing/loss": 1.0,
    }
)


def test_measurements_are_read_from_the_names_of_metrics():
    assert Measurement("speech", "wer", 3.1, 92.8) in MEASURED
    assert Measurement("parsing", "accuracy", 2.0, None, "test_hard") in MEASURED
    assert len(MEASURED) == 5


@pytest.mark.parametrize(
    "text",
    ["wer<0.3", "wer<30%", "speech.wer <= 3.1%", "accuracy>=0.71", "parsing.accuracy > 70 %",
     "log_perplexity<1.5", "wer>-5%", "wer<3.2e-2"],
)  # fmt: skip
def test_a_requirement_that_holds_is_fulfilled(text: str):
    assert Requirement.read(text).check(MEASURED)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("wer<0.03", "wer<0.03 is not met: speech.wer is 3.1 %"),
        ("wer<3.1%", "speech.wer is 3.1 %"),
        ("accuracy>=0.9", "parsing.accuracy is 71.0 %"),
        ("log_perplexity>=1", "parsing.log_perplexity is 0.500 nats"),
    ],
)
def test_a_requirement_that_does_not_hold_says_what_was_measured(text: str, says: str):
    with pytest.raises(RequirementError, match=says):
        Requirement.read(text).check(MEASURED)


@pytest.mark.parametrize(
    ("text", "nearest"), [("speach.wer<0.3", "speech.wer"), ("parsing.wer<1%", "parsing.accuracy"),
                          ("bleu>0.3", "wer, accuracy")]
)  # fmt: skip
def test_a_metric_that_was_not_measured_is_refused_with_the_nearest(text: str, nearest: str):
    with pytest.raises(UnknownNameError) as refused:
        Requirement.read(text).check(MEASURED)
    assert all(name in str(refused.value) for name in nearest.split(", "))


def test_a_version_of_which_nothing_was_measured_is_refused():
    with pytest.raises(RequirementError, match="mmtrain evaluate"):
        Requirement.read("wer<0.3").check([])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("wer", "no requirement"),
        ("wer=0.3", "no requirement"),
        ("wer<abc", "no requirement"),
        ("<0.3", "no requirement"),
        ("", "no requirement"),
        ("wer<nan", "no requirement"),
        ("wer<0.3; rm", "no requirement"),
        ("wer<1", "share below 1 or in percent"),
        ("accuracy>=95", "write 95% for percent"),
        ("log_perplexity<5%", "not in percent"),
    ],
)
def test_what_is_no_requirement_is_refused(text: str, says: str):
    with pytest.raises(RequirementError, match=says):
        Requirement.read(text)


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(UnknownNameError, match="accuracy"):
        Requirement.read("acuracy>0.5")
