"""The joint vocabulary of the text tasks of a run: found among those that there are, or trained.

Vocabularies lie beside each other under their digests, each with a record of what it saw, so that
runs whose text tasks differ share a data folder and leave each other's shards as they are.
"""

import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pipelines import modalities, readers
from pipelines.errors import BadExampleError, BuildError
from pipelines.files import read_retried, write_whole
from pipelines.fingerprint import digest_of, sides_state, source_state
from pipelines.layout import BuildConfig, split_pieces, split_root
from pipelines.modalities import Feature
from pipelines.shards import vocabulary_path
from pipelines.task import Task
from pipelines.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

SOURCES = ".sources.json"  # beside a vocabulary: what it was trained on


def joint_vocabulary(
    tasks: Sequence[Task], *, data_dir: Path, config: BuildConfig
) -> Vocabulary | None:
    """The vocabulary of all text of the tasks' training splits; None where no task has text.

    One that is there stays for any choice of the tasks that it was trained on; another is trained
    when a text, the code that normalises it, or a command is not among what any of them saw. So
    runs whose text tasks differ do not undo each other's.
    """
    record = vocabulary_record(tasks, data_dir=data_dir, config=config)
    if not record:
        return None
    known = known_vocabulary(record, data_dir=data_dir)
    if known is not None:
        return known
    vocabulary = Vocabulary.train(
        (text for task in tasks for text in training_texts(task, data_dir=data_dir, config=config)),
        size=config.vocabulary_size,
        commands=sorted({task.command for task in tasks if task.command}),
    )
    path = vocabulary_path(data_dir, digest=vocabulary.digest)
    vocabulary.save(path)
    sources = path.with_suffix(SOURCES)  # written last: what has none does not exist
    earlier = _read_record(sources) if sources.is_file() else {}
    write_whole(sources, json.dumps(earlier | record, indent=1))
    logger.info("vocabulary of %d tokens in %s", vocabulary.size, path)
    return vocabulary


def vocabulary_record(
    tasks: Iterable[Task], *, data_dir: Path, config: BuildConfig
) -> dict[str, str]:
    """What decides the joint vocabulary of tasks; nothing where none has text."""
    states = {
        f"task {task.name}": digest_of(
            source_state(task, root=split_root(task.source, split="train", data_dir=data_dir)),
            sides_state(task),
            task.command,
        )
        for task in tasks
        if text_sides(task)
    }
    sizes = {"size": str(config.vocabulary_size), "texts": str(config.texts_per_task)}
    return states | sizes if states else {}


def known_vocabulary(record: Mapping[str, str], *, data_dir: Path) -> Vocabulary | None:
    """The vocabulary there is that was trained on all of a record, and on most besides."""
    found = []
    for path in vocabulary_path(data_dir, digest="*").parent.glob(f"*{SOURCES}"):
        known = _read_record(path)
        if record.items() <= known.items():
            found.append((len(known), path.name.removesuffix(SOURCES)))
    return Vocabulary.load(vocabulary_path(data_dir, digest=max(found)[1])) if found else None


def _read_record(path: Path) -> dict[str, str]:
    """What a vocabulary was trained on.

    Raises:
        BuildError: a crash or a failing disk has left something else there.
    """
    try:
        held = json.loads(read_retried(path.read_bytes, path=path))
    except ValueError as error:
        raise BuildError(f"{path} is damaged: {error}; remove it and build again") from None
    if not isinstance(held, dict):
        raise BuildError(f"{path} is damaged: no JSON object; remove it and build again")
    return held


def training_texts(task: Task, *, data_dir: Path, config: BuildConfig) -> Iterator[str]:
    """Texts of a task's training split in normal form; bad rows are left for `build` to report."""
    sides = text_sides(task)
    root = split_root(task.source, split="train", data_dir=data_dir)
    pieces = split_pieces(task, root=root, layout=config.layout) if sides else []
    all_rows = (row for piece in pieces for row in readers.rows(piece))
    for row in itertools.islice(all_rows, config.texts_per_task):
        for name, feature, text_of in sides:
            try:
                yield text_of(getattr(row, name), feature=feature)
            except BadExampleError:
                continue


def text_sides(task: Task) -> list[tuple[str, Feature, Callable[..., str]]]:
    """The sides of a task that are text: their modality says so by a function `text_of`."""
    sides = (("input", task.inputs), ("target", task.targets))
    found = [(name, f, getattr(modalities.load(f.modality), "text_of", None)) for name, f in sides]
    return [(name, feature, text_of) for name, feature, text_of in found if text_of]
