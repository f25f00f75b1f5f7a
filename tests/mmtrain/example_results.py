"""Results of two tasks, one better and one worse than its baseline, for tests of what is drawn."""

from mmtrain.evaluate.results import Results, Sample, Score, SplitResult, run_results, task_result

PIXEL = "data:image/png;base64,iVBORw0KGgo="


def example_results() -> Results:
    wer = Score(
        metric="wer", label="WER", unit="%", higher_is_better=False, value=4.0, baseline=97.5
    )
    bleu = Score(
        metric="bleu", label="BLEU", unit="%", higher_is_better=True, value=2.0, baseline=3.1
    )
    spoken = Sample(
        example_id=7,
        input=PIXEL,
        input_kind="image",
        reference="one",
        prediction="one",
        log_prob=-0.1,
    )
    hostile = Sample(
        example_id=0,
        input="<script>alert(1)</script>",
        input_kind="text",
        reference="a",
        prediction='"><img src=x>',
        log_prob=-3.0,
    )
    speech = SplitResult(
        split="test", scores=(wer,), baseline="most_frequent_target", num_examples=3, seconds=2.0,
        samples=(spoken,),
    )  # fmt: skip
    own = SplitResult(
        split="test", scores=(bleu,), baseline="copy_source", num_examples=5, seconds=4.0,
        samples=(hostile,),
    )  # fmt: skip
    hard = own.model_copy(update={"split": "test_hard", "seconds": 1.0, "samples": ()})
    tasks = {
        "speech_recognition": task_result((speech,), steps=280, seconds=71.0),
        "translation_en_de": task_result((own, hard), steps=281, seconds=3671.0),
    }
    return run_results(tasks, name="tiny", step=561, seconds=593.0, num_parameters=1_920_000)
