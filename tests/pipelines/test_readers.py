import json
from pathlib import Path

import pytest

from pipelines.errors import BuildError, UnknownNameError
from pipelines.readers import RawRow, pieces, rows, source_digest
from pipelines.task import Source


def read(source: Source, root: Path, *, rows_a_piece: int = 100) -> list[RawRow]:
    cut = pieces(source, root=str(root), rows_a_piece=rows_a_piece)
    return [row for piece in cut for row in rows(piece)]


def source(form: str, **options: str) -> Source:
    return Source(uri="raw", format=form, options=options)


def test_image_folder_gives_bytes_and_class_in_the_order_of_paths(tmp_path):
    for name in ("one/b.png", "one/a.png", "two/c.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    assert read(source("image_folder"), tmp_path, rows_a_piece=2) == [
        RawRow(b"one/a.png", "one", "one/a.png"),
        RawRow(b"one/b.png", "one", "one/b.png"),
        RawRow(b"two/c.jpg", "two", "two/c.jpg"),
    ]


def test_video_folder_gives_the_bytes_of_videos(tmp_path):
    for name in ("up/b.webm", "up/a.mp4", "down/c.gif", "up/notes.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    assert read(source("video_folder"), tmp_path) == [
        RawRow(b"down/c.gif", "down", "down/c.gif"),
        RawRow(b"up/a.mp4", "up", "up/a.mp4"),
        RawRow(b"up/b.webm", "up", "up/b.webm"),
    ]


@pytest.mark.parametrize("target", [["a", "b"], {"left": 1.5}, 7, None, "text"])
def test_jsonl_hands_on_a_target_as_it_is(tmp_path, target):
    (tmp_path / "a.jsonl").write_text(json.dumps({"x": "y", "target": target}) + "\n")
    found = read(source("jsonl", input="x", target="target"), tmp_path)
    assert found == [RawRow("y", target, "a.jsonl:1")]


def test_jsonl_reads_files_in_both_columns(tmp_path):
    for name in ("a.png", "m.png"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "a.jsonl").write_text('{"image": "a.png", "mask": "m.png"}\n')
    form = source("jsonl", input="image", target="mask", files="image,mask")
    assert read(form, tmp_path) == [RawRow(b"a.png", b"m.png", "a.jsonl:1")]


def test_tsv_finds_its_columns_by_the_header(tmp_path):
    (tmp_path / "a.tsv").write_text("id\tde\ten\n1\tHund\tdog\n\n2\tKatze\tcat\n")
    assert read(source("tsv", input="en", target="de"), tmp_path) == [
        RawRow("dog", "Hund", "a.tsv:2"),
        RawRow("cat", "Katze", "a.tsv:4"),
    ]


@pytest.mark.parametrize("rows_a_piece", [1, 2, 3, 100])
def test_pieces_of_a_file_give_its_rows_once_in_order(tmp_path, rows_a_piece):
    lines = "".join(f"w{i}\tv{i}\n" for i in range(7))
    (tmp_path / "a.tsv").write_text("en\tde\n" + lines)
    found = read(source("tsv", input="en", target="de"), tmp_path, rows_a_piece=rows_a_piece)
    assert found == [RawRow(f"w{i}", f"v{i}", f"a.tsv:{i + 2}") for i in range(7)]


def test_brackets_give_the_leaves_and_the_tree(tmp_path):
    tree = "(S (NP (DT the) (NN cat)) (VP sleeps))"
    (tmp_path / "a.mrg").write_text(tree + "\n")
    assert read(source("brackets"), tmp_path) == [RawRow("the cat sleeps", tree, "a.mrg:1")]


def test_jsonl_reads_the_files_that_it_names(tmp_path):
    (tmp_path / "wav").mkdir()
    (tmp_path / "wav" / "a.wav").write_bytes(b"RIFF")
    (tmp_path / "a.jsonl").write_text('{"audio": "wav/a.wav", "text": "one"}\n')
    options = {"input": "audio", "target": "text", "files": "audio"}
    assert read(source("jsonl", **options), tmp_path) == [RawRow(b"RIFF", "one", "a.jsonl:1")]


def test_jsonl_reads_the_manifest_named_of_several(tmp_path):
    (tmp_path / "many.jsonl").write_text('{"en": "a", "de": "b"}\n')
    (tmp_path / "few.jsonl").write_text('{"en": "c", "de": "d"}\n')
    options = {"input": "en", "target": "de"}
    assert read(source("jsonl", **options, manifest="few.jsonl"), tmp_path) == [
        RawRow("c", "d", "few.jsonl:1")
    ]
    with pytest.raises(BuildError, match=r"no none\.jsonl file"):
        read(source("jsonl", **options, manifest="none.jsonl"), tmp_path)


def test_bad_lines_keep_their_place_and_say_why(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        b'{"x": "nowhere.wav", "y": "b"}\n{"x": 1\n{"y": "b"}\n\xff\n{"x": "a.jsonl", "y": "b"}\n'
    )
    found = read(source("jsonl", input="x", target="y", files="x"), tmp_path)
    assert [row.origin for row in found] == [f"a.jsonl:{i}" for i in range(1, 6)]
    starts = ("names a file that is not there", "not JSON", "no column 'x'", "not UTF-8")
    for row, start in zip(found, starts, strict=False):
        assert row.problem is not None
        assert row.problem.startswith(start)
    assert found[4].problem is None


def test_text_that_is_not_utf8_stays_bytes(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"en\tde\ncaf\xe9\tKaffee\na\tb\tc\n")
    found = read(source("tsv", input="en", target="de"), tmp_path)
    assert found[0] == RawRow(b"caf\xe9", "Kaffee", "a.tsv:2")
    assert found[1].problem == "3 columns, the header has 2"


def test_remote_uris_are_read_through_fsspec():
    import fsspec

    with fsspec.open("memory://corpus/train/a.tsv", "w") as file:
        file.write("en\tde\ndog\tHund\n")  # pyright: ignore[reportAttributeAccessIssue]
    cut = pieces(
        source("tsv", input="en", target="de"), root="memory://corpus/train", rows_a_piece=9
    )
    assert [row for piece in cut for row in rows(piece)] == [RawRow("dog", "Hund", "a.tsv:2")]


def test_refusals_name_the_remedy(tmp_path):
    with pytest.raises(UnknownNameError, match="no source format 'tvs'; nearest: tsv"):
        read(source("tvs"), tmp_path)
    with pytest.raises(BuildError, match=r"no \.tsv file below .*; check the source's uri"):
        read(source("tsv", input="en", target="de"), tmp_path)
    (tmp_path / "a.tsv").write_text("en\tfr\n")
    with pytest.raises(BuildError, match=r"has no column \['de'\]; it has \['en', 'fr'\]"):
        read(source("tsv", input="en", target="de"), tmp_path)
    with pytest.raises(BuildError, match=r"needs options \['target'\]"):
        read(source("tsv", input="en"), tmp_path)


def test_digest_follows_every_file_below_the_folder(tmp_path):
    form = source("tsv", input="en", target="de")
    (tmp_path / "a.tsv").write_text("en\tde\n")
    before = source_digest(form, root=str(tmp_path))
    assert source_digest(form, root=str(tmp_path)) == before
    (tmp_path / "b.wav").write_bytes(b"1")
    assert source_digest(form, root=str(tmp_path)) != before
