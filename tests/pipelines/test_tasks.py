import pytest

from pipelines import tasks
from pipelines.build import load_maker, make_corpus
from pipelines.corpora.moving_digits import DIRECTIONS
from pipelines.corpora.spoken_digits import VOICES
from pipelines.errors import UnknownNameError
from pipelines.names import OwnCodeError
from pipelines.task import Task
from pipelines.tasks import load_task, task_names

EIGHT = (
    "speech_recognition",
    "image_classification",
    "image_captioning",
    "parsing",
    "translation_en_de",
    "translation_de_en",
    "translation_en_fr",
    "translation_fr_en",
)
NINE = (
    "digit",
    "digit_set",
    "digit_pair",
    "digit_box",
    "digit_mask",
    "motion_direction",
    "motion_identity",
    "spoken_digit",
    "speaking_voice",
)
ALL = (*EIGHT, *NINE, "name_language")


def test_these_tasks_are_shipped():
    assert set(ALL) <= set(task_names())


@pytest.mark.parametrize("name", ALL)
def test_a_task_goes_to_json_and_back(name: str):
    task = load_task(name)
    assert Task.model_validate_json(task.model_dump_json()) == task


@pytest.mark.parametrize("name", ALL)
def test_a_task_is_batched_in_one_way_and_its_maker_exists(name: str):
    task = load_task(name)
    assert (task.batch_size is None) != (task.batch_tokens is None)
    assert callable(load_maker(task.source.maker).make)
    assert (task.command is None) == (task.targets.num_outputs is not None)


def test_the_nine_tasks_of_polyvit_are_of_three_modalities_and_five_kinds():
    tasks = [load_task(name) for name in NINE]
    assert {task.inputs.modality for task in tasks} == {"image", "video", "audio"}
    kinds = {"label", "multilabel", "labels", "numbers", "mask"}
    assert {task.targets.modality for task in tasks} == kinds


def test_tasks_of_one_modality_have_inputs_of_one_size():
    for modality in ("image", "video", "audio"):
        inputs = [task.inputs for task in map(load_task, NINE) if task.inputs.modality == modality]
        assert all(feature == inputs[0] for feature in inputs)


@pytest.mark.parametrize("name", [*NINE, "name_language"])
def test_a_task_of_polyvit_carries_the_hyper_parameters_of_its_own_run(name: str):
    task = load_task(name)
    assert task.num_steps is not None
    assert task.learning_rate is not None
    assert task.warmup_steps is not None
    assert task.warmup_steps < task.num_steps


def test_classes_are_those_that_the_makers_write():
    assert load_task("motion_direction").targets.classes == tuple(DIRECTIONS)
    assert load_task("speaking_voice").targets.classes == tuple(VOICES)


@pytest.mark.parametrize("name", [name for name in EIGHT if load_task(name).bucket_bounds])
def test_the_last_bucket_holds_the_longest_example(name: str):
    task = load_task(name)
    longest = max(getattr(task.inputs, "max_tokens", 0), getattr(task.targets, "max_tokens", 0))
    assert task.bucket_bounds[-1] == longest
    assert list(task.bucket_bounds) == sorted(set(task.bucket_bounds))


def test_unknown_task_names_the_nearest():
    with pytest.raises(UnknownNameError, match="translation_en_de"):
        load_task("translation_en_dee")


def test_a_task_of_the_users_own_file_is_found(tmp_path):
    own = tmp_path / "my_tasks.py"
    own.write_text(
        "from pipelines.tasks import load_task\n"
        "MINE = load_task('parsing').model_copy(update={'name': 'mine'})\n"
        "OTHER = 3\n"
    )
    assert load_task(f"{own}:MINE").name == "mine"
    with pytest.raises(UnknownNameError, match="MINE"):
        load_task(f"{own}:MIN")
    with pytest.raises(OwnCodeError, match=r"OTHER is a int; make it a pipelines\.task\.Task"):
        load_task(f"{own}:OTHER")


def test_a_file_that_is_missing_or_fails_is_named(tmp_path):
    with pytest.raises(OwnCodeError, match="no task file"):
        load_task(f"{tmp_path}/none.py:MINE")
    (tmp_path / "bad.py").write_text("1 / 0\n")
    with pytest.raises(OwnCodeError, match="ZeroDivisionError"):
        load_task(f"{tmp_path}/bad.py:MINE")


def test_no_name_stands_in_two_families():
    assert len(tasks.shipped_tasks()) == len(task_names())


def test_a_corpus_is_made_by_a_maker_of_a_users_own_file(tmp_path):
    file = tmp_path / "my_maker.py"
    file.write_text(
        "def make(folder, *, seed):\n"
        "    folder.mkdir(parents=True)\n"
        "    (folder / 'seed.txt').write_text(str(seed))\n"
    )
    assert make_corpus(str(file), tmp_path / "raw", 7) is None
    assert (tmp_path / "raw" / "seed.txt").read_text() == "7"
