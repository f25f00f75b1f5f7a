"""Readers: a source's files to raw rows, one format each; `pieces` first, then `rows` of a piece.

A piece is what one Ray task reads: some files, or a range of lines of one file. Pieces and their
rows come in a fixed order: files sorted by path, lines as they stand. A row that cannot be read
keeps its place and says why in `problem`, for `build` to quarantine; reading goes on.

    image_folder   <split>/<class>/<name>.png    input: the file's bytes, target: the class
    jsonl          <split>/*.jsonl               options: input, target: columns; files: columns
                                                 (split by commas) that hold paths, read as bytes;
                                                 manifest: the only JSONL file to read of several
    brackets       <split>/*.mrg                 a tree a line; input: its leaves, target: the tree
    tsv            <split>/*.tsv                 header row; options: input, target: columns

Text that is not UTF-8 stays bytes, so that the modality refuses it with its reason.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import fsspec

from pipelines.errors import BuildError
from pipelines.files import FileReadError, os_reason, read_retried
from pipelines.names import load_object
from pipelines.task import Source

# "(NP" opens a bracket with its label; whatever stands apart from one is a leaf
TREE_TOKEN = re.compile(rb"\(\s*[^\s()]*|\)|[^\s()]+")


# Text, a file's bytes, or whatever a JSON column holds
RawValue = bytes | str | int | float | list[Any] | dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class RawRow:
    """A raw example.

    Args:
        input: as its modality's `encode` takes it.
        target: the same.
        origin: "file:line", or the file.
        problem: why it cannot be read; None: it can.
    """

    input: RawValue
    target: RawValue
    origin: str
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """What one task reads: whole `files`, or lines [line, last_line) of the only file.

    Args:
        source: where it is of.
        root: the split's folder, as fsspec opens it.
        files: paths below the root.
        line: first line, from 1; 0 for whole files.
        last_line: the line after the last.
        offset: byte at which the first line starts.
    """

    source: Source
    root: str
    files: tuple[str, ...]
    line: int = 0
    last_line: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Format:
    """How files of a format are found and read.

    Args:
        suffixes: of its files, in small letters, with the dot.
        read: the rows of a piece, in order.
        by_line: whether a row is a line, so that a piece may be a range of lines of one file; else
            a piece is whole files.
    """

    suffixes: tuple[str, ...]
    read: Callable[[Piece], Iterator[RawRow]]
    by_line: bool


def pieces(source: Source, *, root: str, rows_a_piece: int) -> list[Piece]:
    """A split's files, cut so that tasks have alike much to do.

    Args:
        source: whose split it is.
        root: the split's folder.
        rows_a_piece: lines, or files, that one task reads.

    Raises:
        UnknownNameError: no such format.
        BuildError: there are no files, or an option is missing.
    """
    form = format_of(source)
    files = [path for path, _, _ in listing(source, root=root)]
    if not form.by_line:
        starts = range(0, len(files), rows_a_piece)
        return [Piece(source, root, tuple(files[i : i + rows_a_piece])) for i in starts]
    return [piece for file in files for piece in _line_pieces(source, root, file, rows_a_piece)]


def rows(piece: Piece) -> Iterator[RawRow]:
    """The raw rows of a piece, in order.

    Raises:
        FileReadError: a file is there and cannot be read, which is no fault of its rows.
    """
    try:
        yield from format_of(piece.source).read(piece)
    except OSError as error:
        place = error.filename or f"{piece.root}/{piece.files[0]}"
        raise FileReadError(str(place), os_reason(error)) from error


def format_of(source: Source) -> Format:
    """How a source is read: by a shipped format, or by a `Format` of a user's own.

    Raises:
        UnknownNameError: no such format.
        OwnCodeError: the user's file is gone, does not run, or names something else.
    """
    return load_object(source.format, kind="source format", shipped=FORMATS, of=Format)


def listing(source: Source, *, root: str) -> list[tuple[str, int, str]]:
    """Files of a split, sorted: path below the root, size in bytes, time of the last change.

    Raises:
        BuildError: the folder is missing or holds no file of the format.
    """
    form = format_of(source)
    system, folder = fsspec.url_to_fs(root)
    found = system.find(folder, detail=True) if system.isdir(folder) else {}
    wanted = source.options.get("manifest")
    files = sorted(
        (path[len(folder) :].lstrip("/"), int(facts["size"]), _changed(facts))
        for path, facts in found.items()
        if path.lower().endswith(form.suffixes) and wanted in (None, path.rsplit("/", 1)[-1])
    )
    if not files:
        raise BuildError(
            f"no {wanted or ' or '.join(form.suffixes)} file below {root}; check the source's uri, "
            "format, options and splits"
        )
    return files


def source_digest(source: Source, *, root: str) -> str:
    """Changes when any file of a split does: every path below its folder, size and time.

    Files that others name (the sounds of a JSONL manifest) lie below the folder and count.
    """
    system, folder = fsspec.url_to_fs(root)
    found = system.find(folder, detail=True)
    facts = [[path[len(folder) :], f["size"], _changed(f)] for path, f in sorted(found.items())]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _open(path: str) -> BinaryIO:
    system, inside = fsspec.url_to_fs(path)
    return system.open(inside, "rb")


def _changed(facts: dict[str, object]) -> str:
    """What a file system tells of a file's last change; local, S3 and GCS name it differently."""
    names = ("mtime", "ETag", "etag", "LastModified", "updated")
    return str(next((facts[name] for name in names if name in facts), ""))


def _line_pieces(source: Source, root: str, file: str, lines: int) -> Iterator[Piece]:
    """Ranges of `lines` lines; one pass finds where they start, for origins have line numbers."""
    line, offset, first, first_offset = 1, 0, 1, 0
    with _open(f"{root}/{file}") as stream:
        for text in stream:
            if line - first == lines:
                yield Piece(source, root, (file,), first, line, first_offset)
                first, first_offset = line, offset
            line, offset = line + 1, offset + len(text)
    if line > first:
        yield Piece(source, root, (file,), first, line, first_offset)


def _lines(piece: Piece) -> Iterator[tuple[str, bytes]]:
    """(origin, line without its end) of a piece; empty lines are passed over."""
    file = piece.files[0]
    with _open(f"{piece.root}/{file}") as stream:
        stream.seek(piece.offset)
        for number in range(piece.line, piece.last_line):
            line = stream.readline().rstrip(b"\r\n")
            if line.strip():
                yield f"{file}:{number}", line


def _class_folders(piece: Piece) -> Iterator[RawRow]:
    system, root = fsspec.url_to_fs(piece.root)
    for file in piece.files:
        folders = file.split("/")[:-1]
        problem = None if len(folders) == 1 else "not in a folder <split>/<class>/"
        data = _bytes_of(system, f"{root}/{file}")
        yield RawRow(data, "/".join(folders), file, problem)


def _jsonl(piece: Piece) -> Iterator[RawRow]:
    options = piece.source.options
    columns = _columns(piece.source)
    paths = set(options.get("files", "").split(","))
    for origin, line in _lines(piece):
        try:
            record = json.loads(line)
            values = [record[column] for column in columns]
            found = [
                _beside(piece, value) if column in paths else value
                for column, value in zip(columns, values, strict=True)
            ]
        except UnicodeDecodeError:
            yield RawRow(b"", b"", origin, "not UTF-8")
        except json.JSONDecodeError as error:
            yield RawRow(b"", b"", origin, f"not JSON: {error}")
        except (KeyError, TypeError, IndexError) as error:
            yield RawRow(b"", b"", origin, f"no column {error}: write {', '.join(columns)}")
        except FileNotFoundError as error:
            yield RawRow(b"", b"", origin, f"names a file that is not there: {error}")
        else:
            yield RawRow(found[0], found[1], origin)


def _beside(piece: Piece, path: object) -> bytes:
    """Bytes of a file that a line names, relative to the folder of its JSONL file."""
    system, root = fsspec.url_to_fs(piece.root)
    folder = "/".join([root, *piece.files[0].split("/")[:-1]])
    if not isinstance(path, str):
        raise TypeError(f"{path!r}, a path,")
    return _bytes_of(system, f"{folder}/{path}")


def _bytes_of(system: Any, path: str) -> bytes:
    return read_retried(lambda: system.cat_file(path), path=path)


def _brackets(piece: Piece) -> Iterator[RawRow]:
    for origin, line in _lines(piece):
        tokens = TREE_TOKEN.findall(line)
        leaves = [token for token in tokens if token[:1] not in (b"(", b")")]
        yield RawRow(_text(b" ".join(leaves)), _text(line), origin)


def _tsv(piece: Piece) -> Iterator[RawRow]:
    with _open(f"{piece.root}/{piece.files[0]}") as stream:
        header = _text(stream.readline().rstrip(b"\r\n"))
    names = header.split("\t") if isinstance(header, str) else []
    missing = [column for column in _columns(piece.source) if column not in names]
    if missing:
        raise BuildError(f"{piece.root}/{piece.files[0]} has no column {missing}; it has {names}")
    places = [names.index(column) for column in _columns(piece.source)]
    for origin, line in _lines(piece):
        if origin.endswith(":1"):
            continue
        cells = line.split(b"\t")
        if len(cells) != len(names):
            problem = f"{len(cells)} columns, the header has {len(names)}"
            yield RawRow(b"", b"", origin, problem)
        else:
            yield RawRow(_text(cells[places[0]]), _text(cells[places[1]]), origin)


def _columns(source: Source) -> tuple[str, str]:
    """Names of the input and the target column.

    Raises:
        BuildError: the source does not say them.
    """
    missing = [name for name in ("input", "target") if name not in source.options]
    if missing:
        raise BuildError(
            f"source {source.uri}: format {source.format} needs options {missing}, names of columns"
        )
    return source.options["input"], source.options["target"]


def _text(value: bytes) -> bytes | str:
    """As text where it is UTF-8."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value


FORMATS = {
    "image_folder": Format((".png", ".jpg", ".jpeg"), _class_folders, by_line=False),
    "video_folder": Format(
        (".mp4", ".avi", ".gif", ".mkv", ".mov", ".webm"), _class_folders, by_line=False
    ),
    "jsonl": Format((".jsonl",), _jsonl, by_line=True),
    "brackets": Format((".mrg",), _brackets, by_line=True),
    "tsv": Format((".tsv",), _tsv, by_line=True),
}
