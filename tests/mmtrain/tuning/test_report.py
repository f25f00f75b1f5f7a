"""The page and figures of a sweep."""

import re

from rich.console import Console

from mmtrain.tuning.display import SweepProgress, sweep_table, trial_line
from mmtrain.tuning.report import sweep_figures, sweep_page
from mmtrain.tuning.trials import best_trial, pareto_front
from tests.mmtrain.example_sweep import example_sweep, record

TWO = ("score", "parameters")
TRIALS = [record(n, parameters=float((n - 2) ** 2 + 1)) for n in range(6)]
TRIALS += [record(6, state="stopped"), record(7, state="failed")]
TRIALS[7] = TRIALS[7].model_copy(update={"message": "<b>diverged</b>", "objectives": {}})


def test_page_of_one_objective_needs_no_other_file_and_escapes_texts():
    sweep = example_sweep()
    best = best_trial(TRIALS, objectives=sweep.objectives)
    assert best is not None
    page = sweep_page(TRIALS, sweep=sweep, best=best)
    assert "Best: trial 5" in page
    assert "&lt;b&gt;diverged" in page
    assert "<b>diverged" not in page
    assert not re.findall(r"""(?:src|href)=["']http""", page)
    assert set(sweep_figures(TRIALS, sweep=sweep, best=best)) == {"scores", "importance"}


def test_page_of_several_objectives_has_the_front_and_names_its_knee(tmp_path):
    sweep = example_sweep(objectives=TWO, scheduler="none")
    best = best_trial(TRIALS, objectives=TWO)
    assert best is not None
    front = {one.number for one in pareto_front(TRIALS, objectives=TWO)}
    assert best.number in front
    assert front == {2, 3, 4, 5}
    assert f"Knee: trial {best.number}" in sweep_page(TRIALS, sweep=sweep, best=best)
    figures = sweep_figures(TRIALS, sweep=sweep, best=best)
    figures["front"].savefig(tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 1000


def test_live_table_has_a_line_for_each_trial():
    progress = SweepProgress(TRIALS[:2], {1: 7}, num_trials=6, elapsed_s=61)
    console = Console(width=120, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(sweep_table(progress))
    shown = captured.get()
    assert "2 of 6 trials over" in shown
    assert "1:01 elapsed" in shown
    assert "optimizer.learning_rate 0.002" in shown


def test_line_of_a_trial_says_where_it_is():
    line = trial_line(TRIALS[6], step=5)
    assert line.startswith("trial   6  stopped  step 5/9  score 0.600")
