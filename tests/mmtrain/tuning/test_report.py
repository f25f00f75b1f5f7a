"""The page and figures of a sweep."""

import re
from pathlib import Path

import pytest
from rich.console import Console

from mmtrain.tuning.display import newest_step, outcome_lines, sweep_table, trial_line
from mmtrain.tuning.report import sweep_figures, sweep_page
from mmtrain.tuning.study import knee, pareto_front
from mmtrain.tuning.sweep import SweepConfig
from mmtrain.tuning.trials import SweepOutcome, trial_folder
from tests.mmtrain.example_sweep import example_sweep, record

TWO = ("score", "parameters")
TRIALS = [record(n, parameters=float((n - 2) ** 2 + 1)) for n in range(6)]
TRIALS += [record(6, state="stopped"), record(7, state="failed")]
TRIALS[7] = TRIALS[7].model_copy(update={"message": "<b>diverged</b>", "objectives": {}})


def outcome_of(sweep: SweepConfig) -> SweepOutcome:
    front = pareto_front(TRIALS, sweep=sweep)
    return SweepOutcome(
        name=sweep.name,
        out=Path("runs/x"),
        best=knee(front, objectives=sweep.objectives).number,
        best_recipe=Path("runs/x/best.json"),
        front=tuple(one.number for one in front),
        run_id=None,
        seconds=75.0,
        trials=tuple(TRIALS),
    )


def page_of(sweep: SweepConfig) -> str:
    outcome = outcome_of(sweep)
    return sweep_page(outcome, sweep=sweep, figures=sweep_figures(outcome, sweep=sweep))


def test_page_of_one_objective_needs_no_other_file_and_escapes_texts():
    sweep = example_sweep()
    page = page_of(sweep)
    assert "Best: trial 5" in page
    assert "&lt;b&gt;diverged" in page
    assert "<b>diverged" not in page
    assert not re.findall(r"""(?:src|href)=["']http""", page)
    assert set(sweep_figures(outcome_of(sweep), sweep=sweep)) == {"scores", "importance"}


@pytest.mark.parametrize("objectives", [TWO[:1], TWO])
def test_page_has_all_trials_their_values_and_measures(objectives):
    sweep = example_sweep(objectives=objectives, scheduler="none")
    page = page_of(sweep)
    rows = re.findall(
        r'<tr><td class="n">(\d+)</td><td title="(.*?)">(\w+)</td>(.*?)</tr>', page, re.S
    )
    assert [(int(number), state) for number, _, state, _ in rows] == [
        (one.number, one.state) for one in TRIALS
    ]
    cells = [re.sub(r"<.*?>", " ", cells).split() for *_, cells in rows]
    marks = [["9", "0.500", "0.006", "16", "best"], ["9", "0.500", "10", "0.006", "16", "front"]]
    assert cells[5] == marks[len(objectives) - 1]
    sections = re.findall(r"<h2>(.*?)</h2>", page)
    front = ["Front"] * (len(objectives) > 1)
    assert sections[1:] == ["Tasks of it", *front, "Scores", "What mattered", "Trials", "Sweep"]
    assert re.search(r"<th>digit</th><td>accuracy</td>\s*<td class=\"n\">50.00</td>", page)


def test_page_of_several_objectives_has_the_front_and_names_its_knee(tmp_path):
    sweep = example_sweep(objectives=TWO, scheduler="none")
    outcome = outcome_of(sweep)
    assert set(outcome.front) == {2, 3, 4, 5}
    assert outcome.best in outcome.front
    assert f"Knee: trial {outcome.best}" in page_of(sweep)
    figures = sweep_figures(outcome, sweep=sweep)
    figures["front"].savefig(tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 1000


def test_live_table_has_a_line_for_each_trial():
    console = Console(width=120, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(sweep_table(TRIALS[:2], {0: 9, 1: 7}, num_trials=6, elapsed_s=61))
    shown = captured.get()
    assert "2 of 6 trials over" in shown
    assert "1:01 elapsed" in shown
    assert "7/9" in shown
    assert "optimizer.learning_rate 0.002" in shown


def test_line_of_a_trial_says_where_it_is():
    line = trial_line(TRIALS[6])
    assert line.startswith("trial   6  stopped  step 3/9  score 0.600")


def test_running_trial_is_where_its_series_is(tmp_path):
    running = record(1, state="running")
    assert newest_step(tmp_path, running) == 3
    trial_folder(tmp_path, 1).mkdir(parents=True)
    (trial_folder(tmp_path, 1) / "series.jsonl").write_text('{"step": 2}\n{"step": 5}\n{"st')
    assert newest_step(tmp_path, running) == 5
    assert newest_step(tmp_path, TRIALS[1]) == 9


def test_outcome_says_what_is_best_and_what_to_do_next():
    sweep = example_sweep(objectives=TWO, scheduler="none")
    lines = outcome_lines(outcome_of(sweep))
    assert lines[0].startswith("trial 4 of 8 trials in 1:15: parameters 5, score 0.4  (")
    assert lines[1] == "front: trials 2, 3, 4, 5; the knee is trial 4"
    assert lines[-1] == "next: mmtrain train runs/x/best.json"
