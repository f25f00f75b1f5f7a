"""Batch prediction without Ray: what is read, in which parts, answered and committed."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from mmtrain.cli import app
from mmtrain.predict.batch import BatchError, tasks_for
from mmtrain.predict.bulk_answers import BatchJob, predict_part
from mmtrain.predict.bulk_inputs import BatchInputError, InputData, open_input, parts, read_rows
from mmtrain.predict.bulk_output import (
    BatchOutputError,
    OutputFormat,
    Request,
    open_output,
    record,
)
from mmtrain.predict.predictor import Predictor
from mmtrain.predict.values import PredictionError
from pipelines.errors import BadExampleError, MMTrainError, UnknownNameError
from pipelines.ownership import FolderInUseError
from tests.mmtrain.example_bundle import example_bundle
from tests.mmtrain.example_corpus import SENTENCES, build_example_corpora, example_vocabulary, shade

TEXTS = ["Peru", "Mali", "France", "Germany", "the dog slept"]


REQUEST = Request(
    model="a" * 64, input="b" * 64, column="input", tasks=("names",), beam_size=1, rows_a_part=10,
    format="jsonl", model_uri="run", input_uri="data.txt",
)  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example_bundle(tmp_path_factory.mktemp("batch") / "bundle")


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor.load(bundle)


def values(data: InputData, *, rows_a_part: int = 2) -> list[object]:
    return [row.value for part in parts(data, rows_a_part=rows_a_part)
            for row in read_rows(data, part)]  # fmt: skip


def write_table(folder: Path, kind: str) -> Path:
    path = folder / f"data.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"input": text}) + "\n\n" for text in TEXTS))
    elif kind == "txt":
        path.write_text("\r\n".join(TEXTS))
    elif kind == "parquet":
        pq.write_table(pa.table({"input": TEXTS, "n": range(5)}), path, row_group_size=3)
    else:
        comma = "\t" if kind == "tsv" else ","
        lines = [f"n{comma}input", *(f"{n}{comma}{text}" for n, text in enumerate(TEXTS))]
        path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("rows_a_part", [1, 2, 100])
@pytest.mark.parametrize("kind", ["jsonl", "tsv", "csv", "txt", "parquet"])
def test_parts_of_any_size_give_the_rows_in_order(tmp_path: Path, kind: str, rows_a_part: int):
    data = open_input(str(write_table(tmp_path, kind)))
    assert values(data, rows_a_part=rows_a_part) == TEXTS
    cut = list(parts(data, rows_a_part=rows_a_part))
    assert [part.number for part in cut] == list(range(len(cut)))
    assert sum(part.num_rows for part in cut) == 5
    assert [part.first_row for part in cut] == [
        sum(one.num_rows for one in cut[:number]) for number in range(len(cut))
    ]


def test_csv_records_may_hold_line_ends_and_quotes(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbfinput,n\r\n"a\nb",1\r\n"say ""x""",2\r\nc,3\r\n')
    data = open_input(str(tmp_path / "a.csv"))
    assert values(data, rows_a_part=1) == ["a\nb", 'say "x"', "c"]


def test_files_of_a_folder_and_of_a_pattern_come_by_path(tmp_path: Path):
    for name in ("b/2.png", "a.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(shade(30))
    (tmp_path / ".hidden").write_text("")
    found = [tmp_path / name for name in ("a.png", "b/1.png", "b/2.png")]
    assert values(open_input(str(tmp_path))) == found
    assert values(open_input(str(tmp_path / "b" / "*.png"))) == found[1:]


def test_what_cannot_be_read_keeps_its_place_and_says_why(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(
        b'{"input": "Peru"}\n{"input": 3}\n[]\nnot json\n{"input": "\xff"}\n{"other": "x"}\n'
    )
    data = open_input(str(tmp_path / "a.jsonl"))
    rows = [row for part in parts(data, rows_a_part=2) for row in read_rows(data, part)]
    assert [row.number for row in rows] == list(range(6))
    assert rows[0].value == "Peru"
    assert all(isinstance(row.value, BadExampleError) for row in rows[1:])
    problems = [str(row.value) for row in rows[1:]]
    assert problems[0] == problems[1] == problems[4] == "no text in 'input'"
    assert problems[2].startswith("Expecting value")
    assert problems[3] == "not UTF-8"
    assert rows[3].origin == f"{tmp_path}/a.jsonl:4"


def test_wrong_data_is_refused_before_anything_starts(tmp_path: Path):
    with pytest.raises(BatchInputError, match="no files at"):
        open_input(str(tmp_path / "none"))
    write_table(tmp_path, "tsv")
    with pytest.raises(UnknownNameError, match="input"):
        open_input(str(tmp_path / "data.tsv"), column="inputs")
    write_table(tmp_path, "csv")
    with pytest.raises(BatchInputError, match="several kinds"):
        open_input(str(tmp_path))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(BatchInputError, match="not read as Parquet"):
        open_input(str(tmp_path / "broken.parquet"))
    with pytest.raises(BatchInputError, match="is of tables"):
        open_input(str(write_table(tmp_path, "txt")), column="input")


def job_of(
    bundle: Path, data: InputData, out: Path, *tasks: str, form: OutputFormat = "jsonl"
) -> BatchJob:
    out.mkdir(exist_ok=True)
    request = REQUEST.model_copy(update={"tasks": tasks, "format": form})
    return BatchJob(bundle, data, out, request, batch_size=2)


def test_a_part_holds_the_predictors_answers_in_order(
    bundle: Path, predictor: Predictor, tmp_path: Path
):
    data = open_input(str(write_table(tmp_path, "txt")))
    job = job_of(bundle, data, tmp_path / "out", "trees", "names")
    (part,) = parts(data, rows_a_part=100)
    report = predict_part(predictor, job, part)
    assert (report.num_rows, report.num_failed, report.file) == (5, 0, "part-00000.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out" / report.file).open()]
    assert [(line["row"], line["task"]) for line in lines] == [
        (row, task) for row in range(5) for task in ("trees", "names")
    ]
    for task in ("trees", "names"):
        said = predictor.predict(task, TEXTS, batch_size=2)
        mine = [line for line in lines if line["task"] == task]
        assert [line["text"] for line in mine] == [one.text for one in said]
        assert [line["tree"] for line in mine] == [one.tree for one in said]
    assert [path.name for path in (tmp_path / "out").iterdir()] == [report.file]


def test_a_picture_that_does_not_decode_is_an_error_of_its_row(
    bundle: Path, predictor: Predictor, tmp_path: Path
):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, contents in enumerate((shade(20), b"no picture", shade(220))):
        (folder / f"{number}.png").write_bytes(contents)
    data = open_input(str(folder))
    job = job_of(bundle, data, tmp_path / "out", "shades", form="parquet")
    (part,) = parts(data, rows_a_part=100)
    report = predict_part(predictor, job, part)
    assert report.num_failed == 1
    table = pd.read_parquet(tmp_path / "out" / report.file)
    expected = predictor.predict("shades", [shade(20), shade(220)])
    assert list(table["text"].dropna()) == [one.text for one in expected]
    assert dict(table["scores"][2]) == pytest.approx(dict(expected[1].scores), abs=1e-5)
    assert list(table["error"].notna()) == [False, True, False]
    assert table["input"][1] == str(folder / "1.png")
    assert list(report.failures.values()) == [1]


def test_tables_may_name_files_or_hold_their_bytes(
    bundle: Path, predictor: Predictor, tmp_path: Path
):
    (tmp_path / "a.png").write_bytes(shade(20))
    rows = [{"input": "a.png"}, {"input": "gone.png"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.table({"picture": [shade(20), b""]}), tmp_path / "b.parquet")
    for name, column in (("a.jsonl", "input"), ("b.parquet", "picture")):
        data = open_input(str(tmp_path / name), column=column)
        job = job_of(bundle, data, tmp_path / "out", "shades")
        (part,) = parts(data, rows_a_part=100)
        assert predict_part(predictor, job, part).num_failed == 1


def test_a_built_split_is_answered_as_its_raw_examples_are(
    bundle: Path, predictor: Predictor, tmp_path: Path
):
    build_example_corpora(tmp_path, vocabulary=example_vocabulary())
    data = open_input(str(tmp_path / "shards" / "shades" / "test"))
    tasks = tasks_for(data, predictor.tasks, task=None, modality=None)
    assert tasks == ("shades",)
    job = job_of(bundle, data, tmp_path / "out", *tasks)
    (part,) = parts(data, rows_a_part=10)
    predict_part(predictor, job, part)
    lines = [json.loads(line) for line in (tmp_path / "out" / "part-00000.jsonl").open()]
    said = predictor.predict("shades", [shade(20), shade(220)])
    assert [line["text"] for line in lines] == [one.text for one in said]
    with pytest.raises(BatchError, match="was built for"):
        tasks_for(data, predictor.tasks, task="names", modality=None)


def test_tasks_are_chosen_by_name_or_modality(predictor: Predictor, tmp_path: Path):
    data = open_input(str(write_table(tmp_path, "txt")))
    assert tasks_for(data, predictor.tasks, task=None, modality="text") == (
        "trees",
        "names",
    )
    with pytest.raises(UnknownNameError, match="names"):
        tasks_for(data, predictor.tasks, task="name", modality=None)
    with pytest.raises(PredictionError, match="--modality"):
        tasks_for(data, predictor.tasks, task=None, modality=None)
    with pytest.raises(UnknownNameError, match="text"):
        tasks_for(data, predictor.tasks, task=None, modality="txt")


def test_only_whole_noted_parts_count_as_done(bundle: Path, predictor: Predictor, tmp_path: Path):
    data = open_input(str(write_table(tmp_path, "txt")))
    job = job_of(bundle, data, tmp_path / "out", "names")
    reports = {}
    with open_output(job.out, REQUEST) as done:
        assert done == {}
        for part in parts(data, rows_a_part=1):
            reports[part.number] = predict_part(predictor, job, part)
            record(job.out, reports[part.number])
    (job.out / "part-00001.jsonl").unlink()
    os.truncate(job.out / "part-00003.jsonl", 5)
    (job.out / ".part-00009.jsonl.1").write_text("half")
    with (job.out / "_parts.jsonl").open("a") as file:
        file.write('{"file": "part-0')
    with open_output(job.out, REQUEST) as done:
        assert done == {number: reports[number] for number in (0, 2, 4)}
    assert not list(job.out.glob(".part-*"))
    assert (job.out / "_parts.jsonl").read_text().endswith("}\n")


@pytest.mark.parametrize(
    ("field", "value"), [("model", "c" * 64), ("input", "d" * 64), ("tasks", ("trees",))]
)
def test_output_of_another_model_input_or_task_is_refused(
    tmp_path: Path, field: str, value: object
):
    with open_output(tmp_path / "out", REQUEST):
        pass
    other = REQUEST.model_copy(update={field: value})
    with (
        pytest.raises(BatchOutputError, match=f"predictions of another {field}"),
        open_output(tmp_path / "out", other),
    ):
        pass


def test_a_folder_of_other_things_or_another_writers_is_refused(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(BatchOutputError, match="other files"), open_output(tmp_path, REQUEST):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with open_output(tmp_path / "out", REQUEST), ThreadPoolExecutor() as others:
        other = others.submit(lambda: open_output(tmp_path / "out", REQUEST).__enter__())
        with pytest.raises(FolderInUseError, match=rf"by process {os.getpid()} on .* --output"):
            other.result()


def test_memory_does_not_grow_with_the_file(tmp_path: Path):
    with (tmp_path / "long.txt").open("w") as file:
        file.writelines(f"{number} {'x' * 90}\n" for number in range(50_000))
    data = open_input(str(tmp_path / "long.txt"))
    last = list(parts(data, rows_a_part=1000))[-1]
    rows = list(read_rows(data, last))
    assert (len(rows), rows[-1].number) == (1000, 49_999)
    assert str(rows[-1].value).startswith("49999 ")


def test_sentences_of_a_text_file_are_a_row_each(tmp_path: Path):
    for number, sentence in enumerate(SENTENCES):
        (tmp_path / f"{number}.txt").write_text(sentence)
    assert all(isinstance(value, Path) for value in values(open_input(str(tmp_path))))
    assert values(open_input(str(tmp_path / "1.txt"))) == [SENTENCES[1]]
    assert np.shape(values(open_input(str(tmp_path)))) == (3,)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--input", "a.txt"], "--input and --output go together"),
        (["--output", "out"], "--input and --output go together"),
        ([], "nothing to answer"),
        (["Peru", "--input", "a.txt", "--output", "out"], "not both"),
        (["--input", "none.txt", "--output", "out"], "no files at none.txt"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(arguments: list[str], says: str):
    ended = CliRunner().invoke(app, ["predict", "no/such/run", *arguments])
    assert isinstance(ended.exception, MMTrainError)
    assert says in str(ended.exception)
