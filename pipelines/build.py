"""Build: corpora to shards, for all tasks in one Ray Dataset.

A row of the Dataset is a piece of a source (some files, some lines). The Ray task that takes it
writes one shard and hands back a report of a few hundred bytes, so the driver sees reports only
and a corpus may be of any size. A split appears whole, by renaming its folder, or not at all.
"""

import importlib
import logging
import pickle
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import ray
import ray.data

from pipelines.errors import BuildError, CorpusError
from pipelines.fingerprint import split_fingerprint
from pipelines.joint_vocabulary import joint_vocabulary, text_sides
from pipelines.layout import BuildConfig, split_pieces, split_root
from pipelines.names import load_module
from pipelines.ownership import sole_owner
from pipelines.seal import SplitJob, finish_split
from pipelines.shards import Manifest, open_manifest, shard_folder, vocabulary_path
from pipelines.task import Split, Task
from pipelines.vocabulary import Vocabulary
from pipelines.writer import Unit, UnitReport, disk_failure, write_unit

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]


def build(
    tasks: Sequence[Task],
    *,
    data_dir: Path,
    config: BuildConfig | None = None,
    progress: Progress | None = None,
) -> dict[tuple[str, str], Manifest]:
    """Makes what is missing of the corpora, the joint vocabulary and the shards of all splits.

    What was built from the same files by the same code stays as it is, without starting Ray; so
    does what is whole when something else fails.

    Args:
        tasks: all tasks of a run, so that they share one vocabulary.
        data_dir: folder of corpora and shards, seen by all machines.
        config: None: the defaults.
        progress: told (task, shards done, shards in all its splits) after each.

    Returns:
        Opened manifests by (task, split).

    Raises:
        BuildError: a source is missing, too many records are bad, or the disk is full.
        FolderInUseError: another process builds in the folder.
    """
    config, data_dir = config or BuildConfig(), data_dir.absolute()
    try:
        with sole_owner(data_dir, option="--data", name=".build.lock"):
            make_corpora(tasks, data_dir=data_dir, seed=config.seed)
            vocabulary = joint_vocabulary(tasks, data_dir=data_dir, config=config)
            jobs = [
                plan_split(task, split, data_dir=data_dir, vocabulary=vocabulary, config=config)
                for task in tasks
                for split in task.source.splits
            ]
            stale = [job for job in jobs if not is_fresh(job)]
            build_splits(stale, data_dir=data_dir, config=config, progress=progress)
    except OSError as error:
        raise BuildError(disk_failure(error, data_dir)) from error
    return {(job.task.name, job.split): open_manifest(job.folder) for job in jobs}


def make_corpora(tasks: Iterable[Task], *, data_dir: Path, seed: int) -> None:
    """Runs the makers of the sources that have one and are not there, side by side.

    Raises:
        BuildError: a maker could not write.
    """
    missing = {
        data_dir / task.source.uri: task.source.maker
        for task in tasks
        if task.source.maker and not (data_dir / task.source.uri).exists()
    }
    if not missing:
        return
    start_ray()
    made = {
        folder: ray.remote(make_corpus).remote(maker, folder, seed)
        for folder, maker in missing.items()
    }
    for folder, reference in made.items():
        failure = ray.get(reference)
        if failure is not None:
            raise BuildError(failure)
        logger.info("made corpus %s", folder)


def make_corpus(maker: str, folder: Path, seed: int) -> str | None:
    """Runs one maker; returns why it could not write, where it could not."""
    try:
        load_maker(maker).make(folder, seed=seed)
    except OSError as error:
        return disk_failure(error, folder)
    return None


def load_maker(name: str) -> ModuleType:
    """The module of a maker: of `pipelines/corpora`, or a user's own.

    Raises:
        UnknownNameError: there is no such maker.
        OwnCodeError: the user's file is gone, does not run, or has no `make`.
    """
    corpora = importlib.import_module("pipelines.corpora")  # by name: nothing here depends on it
    return load_module(name, kind="corpus maker", package=corpora, needs=("make",))


def start_ray() -> None:
    """Joins the cluster of RAY_ADDRESS, or starts one here, unless one is joined already.

    Raises:
        BuildError: Ray does not start.
    """
    if ray.is_initialized():
        return
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises that very class
        raise BuildError(f"Ray does not start: {error}; free CPU and memory, then again") from error


def plan_split(
    task: Task, split: Split, *, data_dir: Path, vocabulary: Vocabulary | None, config: BuildConfig
) -> SplitJob:
    """What building a split comes to; nothing is built.

    Raises:
        BuildError: mean and deviation are measured on the training split, and there is none.
    """
    root = split_root(task.source, split=split, data_dir=data_dir)
    digest = vocabulary.digest if vocabulary is not None and text_sides(task) else None
    train_root = None
    if task.inputs.is_measured:
        if "train" not in task.source.splits:
            raise BuildError(
                f"task {task.name}: standard='corpus' measures the split 'train', source.splits are"
                f" {task.source.splits}; add it, or set standard to a mean and a deviation"
            )
        train_root = split_root(task.source, split="train", data_dir=data_dir)
    return SplitJob(
        task=task,
        split=split,
        root=root,
        folder=shard_folder(data_dir, task=task.name, split=split),
        fingerprint=split_fingerprint(
            task, root=root, train_root=train_root, layout=config.layout, vocabulary=digest
        ),
        vocabulary_digest=digest,
    )


def is_fresh(job: SplitJob) -> bool:
    """Whether what is there was built from the same files by the same code, and is whole."""
    try:
        return open_manifest(job.folder).fingerprint == job.fingerprint
    except CorpusError:
        return False


def build_splits(
    jobs: Sequence[SplitJob], *, data_dir: Path, config: BuildConfig, progress: Progress | None
) -> None:
    """Builds splits, all shards of all of them in one Ray Dataset.

    Raises:
        BuildError: of all splits that failed; the others are built.
    """
    if not jobs:
        return
    units = {job.folder: split_units(job, data_dir=data_dir, config=config) for job in jobs}
    reports: dict[Path, list[UnitReport]] = {job.folder: [] for job in jobs}
    by_part = {job.part: job for job in jobs}
    task_totals = Counter(job.task.name for job in jobs for _ in units[job.folder])
    task_done: Counter[str] = Counter()
    last: list[SplitJob] = []
    failures: dict[Path, list[str]] = {}
    try:
        for report in run_units([unit for some in units.values() for unit in some]):
            job = by_part[report.unit.folder]
            done, task = reports[job.folder], job.task.name
            done.append(report)
            task_done[task] += 1
            if progress is not None:
                progress(task, task_done[task], task_totals[task])
            if len(done) < len(units[job.folder]):
                continue
            if job.train_folder:
                last.append(job)
            else:
                failures[job.folder] = finish_split(job, done, max_bad_share=config.max_bad_share)
        for job in last:
            if not failures.get(job.train_folder or job.folder):
                done = reports[job.folder]
                failures[job.folder] = finish_split(job, done, max_bad_share=config.max_bad_share)
    finally:
        for part in by_part:
            shutil.rmtree(part, ignore_errors=True)
    if told := [failure for some in failures.values() for failure in some]:
        raise BuildError("; ".join(told))


def split_units(job: SplitJob, *, data_dir: Path, config: BuildConfig) -> list[Unit]:
    """The units of a split, over an empty folder."""
    shutil.rmtree(job.part, ignore_errors=True)
    pieces = split_pieces(job.task, root=job.root, layout=config.layout)
    digest = job.vocabulary_digest
    return [
        Unit(
            task=job.task,
            split=job.split,
            number=number,
            piece=piece,
            folder=job.part,
            vocabulary=vocabulary_path(data_dir, digest=digest) if digest else None,
            row_group_rows=config.layout.row_group_rows,
        )
        for number, piece in enumerate(pieces)
    ]


def run_units(units: Sequence[Unit]) -> Iterator[UnitReport]:
    """Writes the shards of units by Ray tasks; reports come as they are done."""
    start_ray()
    with ray.data.DataContext.current(quiet_context()):
        dataset = ray.data.from_items(
            [{"unit": pickle.dumps(unit)} for unit in units], override_num_blocks=len(units)
        ).map(lambda row: {"report": pickle.dumps(write_unit(pickle.loads(row["unit"])))})
    for row in dataset.iter_rows():
        yield pickle.loads(row["report"])


def quiet_context() -> ray.data.DataContext:
    """Settings of Ray Data for Datasets that leave the terminal to us; its log file has all."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it logs each start and end as INFO
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return context
