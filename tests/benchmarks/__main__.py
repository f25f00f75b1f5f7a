"""Runs every benchmark, prints their lines, and draws all ratios in one figure.

python -m tests.benchmarks [NAME ...] [--out DIR]      e.g. bench_moe bench_step
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent


def run_script(path: Path) -> list[dict]:
    """The JSON lines that one script prints; what else it prints goes by."""
    print(f"# {path.stem}", flush=True)
    command = [sys.executable, str(path)]
    found = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE.parents[1]) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if line.startswith("{"):
                found.append(json.loads(line))
                print(line, end="", flush=True)
    if run.returncode:
        sys.exit(f"{path.name} ended with status {run.returncode}")
    return found


def draw(lines: list[dict], path: Path) -> None:
    """A bar for each comparison on one log scale: how many times better than the peer we are."""
    compared = [line for line in lines if line["ratio"]]
    gains = [x["ratio"] if x["better"] == "higher" else 1 / x["ratio"] for x in compared]
    colors = ["#2a7f62" if gain >= 1 else "#b5523b" for gain in gains]
    figure, axes = plt.subplots(figsize=(9, 1 + 0.36 * len(compared)), layout="constrained")
    rows = range(len(compared))
    axes.barh(rows, [gain - 1 for gain in gains], left=1, color=colors)
    axes.set_yticks(rows, [line["name"] for line in compared], fontsize=8)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    for row, (gain, line) in enumerate(zip(gains, compared, strict=True)):
        label = f" {gain:.2f}x  ({line['ours']:.4g} against {line['peer']:.4g} {line['unit']}) "
        axes.text(gain, row, label, va="center", ha="left" if gain >= 1 else "right", fontsize=7)
    axes.margins(x=0.9)
    axes.set_xlabel("times better than the peer")
    figure.savefig(path, dpi=130)
    print(f"# figure: {path}")


def main() -> None:
    """Runs the scripts named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    chosen = parser.parse_args()
    scripts = sorted(HERE.glob("bench_*.py"))
    if chosen.names:
        scripts = [HERE / f"{name.removesuffix('.py')}.py" for name in chosen.names]
    lines = [line for script in scripts for line in run_script(script)]
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "benchmarks.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    draw(lines, chosen.out / "benchmarks.png")


if __name__ == "__main__":
    main()
