import io

from rich.console import Console

from mmtrain.run.progress import ProgressDisplay, RunProgress, TaskProgress, progress_table

PROGRESS = RunProgress(
    step=20,
    num_steps=100,
    elapsed_s=75,
    remaining_s=300,
    tasks={"parsing": TaskProgress(steps=12, loss=1.25, examples_per_s=80.4)},
)


def test_display_prints_plain_lines_where_there_is_no_terminal():
    out = io.StringIO()
    with ProgressDisplay(lambda: PROGRESS, console=Console(file=out)):
        pass
    assert "step 20/100  1:15 elapsed, 5:00 remaining  parsing 1.250" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_table_has_a_line_for_each_task():
    console = Console(file=io.StringIO(), width=100)
    console.print(progress_table(PROGRESS))
    shown = console.file.getvalue()
    assert "step 20 of 100" in shown
    assert shown.splitlines()[-1].split() == ["parsing", "12", "1.250", "80"]
