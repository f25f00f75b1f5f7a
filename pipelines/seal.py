"""Sealing: the shards of a split, all written, become a split that readers open."""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.shards import (
    COMPLETED,
    MANIFEST,
    QUARANTINE,
    Manifest,
    contents_digest,
    open_manifest,
)
from pipelines.task import Split, Task
from pipelines.writer import Counts, UnitReport

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SplitJob:
    """A split to build: where from, where to, and what it will have been built from."""

    task: Task
    split: Split
    root: str
    folder: Path
    fingerprint: str
    vocabulary_digest: str | None

    @property
    def part(self) -> Path:
        """Folder beside the final one, in which the split grows."""
        return self.folder.with_name(f".{self.folder.name}.part")

    @property
    def train_folder(self) -> Path | None:
        """The training split whose mean and deviation this one has; None: it needs none."""
        is_measured_there = self.task.inputs.is_measured and self.split != "train"
        return self.folder.with_name("train") if is_measured_there else None


def finish_split(
    job: SplitJob, reports: Iterable[UnitReport], *, max_bad_share: float
) -> list[str]:
    """Seals a split whose shards are all written and puts it in its place; or says why not."""
    ordered = sorted(reports, key=lambda report: report.unit.number)
    failures = [report.failure for report in ordered if report.failure is not None]
    bad = [row for report in ordered for row in report.bad]
    counts = sum((r.counts for r in ordered if r.counts is not None), start=Counts())
    share = len(bad) / max(1, len(bad) + counts.rows)
    if failures:
        return [f"{job.task.name} {job.split}: {failures[0]}"]
    if counts.rows == 0 or share > max_bad_share:
        shown = ", ".join(f"{origin} ({reason})" for origin, reason in bad[:3])
        return [
            f"{job.task.name} {job.split}: {len(bad)} of {len(bad) + counts.rows} records are bad, "
            f"{share:.1%}; at most {max_bad_share:.1%} may be: {shown}; mend them below "
            f"{job.root}, or raise max_bad_share"
        ]
    inputs = job.task.inputs
    if job.train_folder:
        inputs = open_manifest(job.train_folder).task.inputs
    elif inputs.is_measured:
        mean, deviation = counts.moments.standard()
        if deviation == 0:
            return [
                f"{job.task.name} train: every value of its inputs is {mean:.6g}, and nothing can "
                "be standardised by a deviation of 0; mend the source, or set inputs.standard"
            ]
        inputs = inputs.as_measured((mean, deviation))
    task = job.task.model_copy(update={"inputs": inputs})
    seal(replace(job, task=task), ordered, bad=bad, counts=counts)
    return []


def seal(
    job: SplitJob, reports: Sequence[UnitReport], *, bad: Sequence[tuple[str, str]], counts: Counts
) -> None:
    """Writes quarantine, manifest and last COMPLETED, then renames the folder into its place."""
    shards = tuple(report.shard for report in reports if report.shard is not None)
    longest_input = int(job.task.inputs.finished_length(counts.longest_input))
    mean_input = job.task.inputs.finished_length(counts.input_positions / counts.rows)
    longest = max(longest_input, counts.longest_target)
    bounds = job.task.bucket_bounds
    manifest = Manifest(
        task=job.task,
        split=job.split,
        num_examples=counts.rows,
        bucket_bounds=bounds if bounds and longest <= bounds[-1] else (*bounds, longest),
        shards=shards,
        digest=contents_digest(shards),
        fingerprint=job.fingerprint,
        vocabulary_digest=job.vocabulary_digest,
        quarantined=dict(Counter(reason.split(":")[0] for _, reason in bad)),
        stats={
            "mean_input_positions": mean_input,
            "mean_target_positions": counts.target_positions / counts.rows,
            "longest_input": longest_input,
            "longest_target": counts.longest_target,
        },
    )
    records = [json.dumps({"origin": origin, "reason": reason}) + "\n" for origin, reason in bad]
    (job.part / QUARANTINE).write_text("".join(records))
    write_manifest(job.part, manifest)
    old = job.folder.with_name(f".{job.folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if job.folder.exists():
        job.folder.rename(old)
    job.part.rename(job.folder)
    shutil.rmtree(old, ignore_errors=True)
    logger.info("built %s: %d examples, %d bad", job.folder, counts.rows, len(bad))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest and last of all COMPLETED, without which the split does not exist."""
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (folder / COMPLETED).write_text(manifest.digest)
