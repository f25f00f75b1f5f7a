"""Tables of the study of subtask-adaptive networks, in Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

SIZES = (1, 2, 3, 4, 5)
Row = Mapping[str, Any]


def tables(found: Sequence[Row], *, middle: str) -> str:
    """All tables that what was found so far has rows for."""
    digits = [row for row in found if row["part"] != "transformers"]
    parts = [
        ("Operations kept / accuracy by price (%)", _by_price(digits)),
        (f"Ways to a smaller network, gamma {middle}: accuracy (%)", _ways(digits, middle)),
        (
            f"Without one part, gamma {middle}: operations / accuracy (%)",
            _ablations(digits, middle),
        ),
    ]
    parts += [
        (f"{name} cut to tasks", _transformer([r for r in found if r["name"] == name]))
        for name in dict.fromkeys(row["name"] for row in found if row["part"] == "transformers")
    ]
    return "\n\n".join(f"### {title}\n\n{table}" for title, table in parts if table) + "\n"


def _by_price(found: Sequence[Row]) -> str:
    rows = [row for row in found if row["part"] == "price"]
    lines = [_head("gamma")]
    for gamma in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == gamma]
        lines.append(_line(gamma, own, ("flops", "cut")))
    return "\n".join(lines) if rows else ""


def _ways(found: Sequence[Row], middle: str) -> str:
    price = [row for row in found if row["part"] == "price" and row["name"] == middle]
    plain = [row for row in found if row["part"] == "plain"]
    alone = [row for row in found if row["part"] == "alone"]
    if not price:
        return ""
    lines = [_head("network"), _line("operations", price, ("flops",))]
    named = (
        ("all units, masks of all subtasks", price, "whole"),
        ("cut by its masks", price, "cut"),
        ("as many units drawn by chance", price, "as many units drawn by chance"),
        ("trained alone, as large as the cut one", alone, "alone"),
        ("trained without masks, whole", plain, "plain"),
        ("the same pruned by magnitude", plain, "magnitude"),
        ("the same, statistics of training", plain, "magnitude, statistics of training"),
    )
    lines += [_line(name, rows, (key,)) for name, rows, key in named if rows]
    return "\n".join(lines)


def _ablations(found: Sequence[Row], middle: str) -> str:
    price = [row for row in found if row["part"] == "price" and row["name"] == middle]
    if not price:
        return ""
    lines = [_head("network"), _line("as it is", price, ("flops", "cut"))]
    lines.append(_line("no recalibration", price, ("flops", "cut, statistics of training")))
    others = [row for row in found if row["part"] == "ablations"]
    for name in dict.fromkeys(row["name"] for row in others):
        own = [row for row in others if row["name"] == name]
        lines.append(_line(name, own, ("flops", "cut")))
        stale = "cut, statistics of training"
        lines.append(_line(f"{name}, no recalibration", own, ("flops", stale)))
    return "\n".join(lines)


def _head(first: str) -> str:
    sizes = " | ".join(f"{size} of 5" for size in SIZES)
    return f"| {first} | {sizes} |\n{'|---' * (len(SIZES) + 1)}|"


def _line(name: str, rows: Sequence[Row], keys: Sequence[str]) -> str:
    """A row's mean of each key at each size; shares in percent."""
    cells = []
    for size in SIZES:
        own = [row for row in rows if row["size"] == size]
        means = [_mean(own, key) for key in keys if own]
        cells.append(" / ".join(means) or "-")
    return f"| {name} | {' | '.join(cells)} |"


def _mean(rows: Sequence[Row], key: str) -> str:
    mean = statistics.mean(row[key] for row in rows)
    return f"{100 * mean:.0f}" if key == "flops" else f"{mean:.1f}"


def _transformer(rows: Sequence[Row]) -> str:
    tasks = list(rows[-1]["cut"])
    heads = " | ".join(f"`{task}` {rows[-1]['metrics'][task]}" for task in tasks)
    lines = [f"| subtasks | units | operations | parameters | {heads} |"]
    lines.append("|---" * (len(tasks) + 4) + "|")
    for row in rows:
        shares = " | ".join(f"{100 * row[key]:.0f} %" for key in ("units", "flops", "parameters"))
        cells = " | ".join(_score(row["cut"], task) for task in tasks)
        name = "all" if len(row["union"]) == len(tasks) else " + ".join(row["union"])
        lines.append(f"| {name} | {shares} | {cells} |")
        chance = row.get("as many units drawn by chance")
        if chance:
            cells = " | ".join(_score(chance, task) for task in tasks)
            lines.append(f"| the same, units drawn by chance | | | | {cells} |")
    return "\n".join(lines)


def _score(scores: Mapping[str, float], task: str) -> str:
    return f"{scores[task]:.1f}" if task in scores else ""
