"""The report: one page that stands alone, and the terminal's table."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from mmtrain.evaluate.results import with_unit
from mmtrain.report.figures import curves_figure, routing_figure, shares_figure, to_svg
from mmtrain.report.report import Run, report_page, results_table, write_report
from tests.mmtrain.example_results import PIXEL, example_results

VOID = {"meta", "img", "br", "path", "use", "rect", "image"}
RUN = Run(
    curves={"speech_recognition": [(0, 3.0), (20, 1.0)], "translation_en_de": []},
    routing={"encoder": [[3, 1], [0, 4]]},
    routing_tasks=("speech_recognition", "translation_en_de"),
    recipe='{"name": "</pre><b>"}',
    corpora={"speech_recognition": "ab" * 32},
    times={"training": 593.0},
    facts={"MLflow run": "a1b2"},
)


class Tags(HTMLParser):
    """Opens and closes tags; keeps attributes that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page() -> str:
    return report_page(example_results(), run=RUN)


def test_the_page_is_well_formed_and_loads_nothing_from_elsewhere(page: str):
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert "script" not in tags.names
    assert PIXEL in tags.sources
    assert all(source.startswith(("data:", "#")) for source in tags.sources)
    assert not re.search(r"@import|url\(\s*['\"]?http", page)


def test_what_a_model_or_a_corpus_says_is_escaped(page: str):
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&#34;&gt;&lt;img src=x&gt;" in page
    assert "&lt;/pre&gt;&lt;b&gt;" in page


def test_the_page_shows_each_part_of_a_run(page: str):
    for part in (
        "speech recognition", "WER", "4.0 %", "97.5 %", "test_hard", "1:01:11", "1 of 2",
        "1.92 M", "Loss by step", "Experts by task", "Predictions", "a1b2", "abab", "9:53",
    ):  # fmt: skip
        assert part in page, part


def test_figures_take_the_text_colour_of_the_page(page: str):
    svg = to_svg(routing_figure([[1, 2], [3, 4]], tasks=("a", "b")))
    assert svg.startswith("<svg")
    assert "currentColor" in svg
    assert "currentColor" in page


def test_equal_figures_give_equal_bytes():
    once, again = (to_svg(curves_figure({"a": [(0, 2.0), (1, float("nan"))]})) for _ in range(2))
    assert once == again


def test_a_report_is_one_file(tmp_path: Path):
    write_report(example_results(), run=Run(), path=tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_terminal_table_has_a_line_for_each_task_and_harder_split():
    console = Console(file=io.StringIO(), width=120)
    console.print(results_table(example_results()))
    assert isinstance(console.file, io.StringIO)
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["speech_recognition", "WER", "4.0", "%", "97.5", "%", "280", "1:11"] in lines
    assert ["test_hard", "BLEU", "2.0", "%", "3.1", "%"] in lines
    assert ["561", "9:53"] in lines
    assert ["1", "of", "2", "beat", "their", "baseline"] in lines


def test_how_many_beat_their_baseline_stands_on_one_line_where_there_is_no_terminal():
    console = Console(file=io.StringIO(), width=80)
    console.print(results_table(example_results()))
    assert isinstance(console.file, io.StringIO)
    assert "  1 of 2 beat their baseline\n" in console.file.getvalue()


def test_a_value_that_has_no_unit_stands_alone():
    assert with_unit(0.01234, "") == "0.0123"


def test_values_as_a_person_reads_them():
    assert (with_unit(4.06, "%"), with_unit(0.2119, "nats")) == ("4.1 %", "0.212 nats")


def test_agreement_of_gradients_is_a_section_where_it_was_sampled():
    page = report_page(example_results(), run=Run())
    assert "Agreement of gradients" not in page
    run = Run(agreement=[[1.0, None], [-0.25, 1.0]], agreement_tasks=("left_one", "right_one"))
    page = report_page(example_results(), run=run)
    assert "Agreement of gradients" in page
    assert "left one" in page
    assert "-0.25" in page


def test_the_tasks_shares_of_the_steps_are_drawn_where_there_are_several():
    counts = [(10, {"one": 5, "two": 5}), (20, {"one": 15, "two": 5})]
    page = report_page(example_results(), run=Run(counts=counts))
    assert "Tasks by step" in page
    axes = shares_figure(counts).axes[0]
    tops = [area.get_paths()[0].vertices[:, 1].max() for area in axes.collections]  # type: ignore[union-attr,call-overload]  # arrays
    assert tops == [1.0, 1.0]
    alone = report_page(example_results(), run=Run(counts=[(10, {"one": 10}), (20, {"one": 20})]))
    assert "Tasks by step" not in alone
