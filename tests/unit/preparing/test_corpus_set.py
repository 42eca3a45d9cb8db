"""A corpus on disk comes back as it was written; what is no corpus is refused by file and field."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_corpus import FRAMES, make_corpus, opening_of, sound_of

from preparation.corpus_set import CorpusError, read_corpus_set, read_mean_face, read_sound, write_corpus_set


@pytest.fixture
def folder(tmp_path):
    return make_corpus(tmp_path / "corpus")


def change_arrays(folder, **changes):
    """Changes arrays of landmarks.npz; None takes one away."""
    path = folder / "landmarks.npz"
    with np.load(path) as archive:
        arrays = dict(archive) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def change_line(folder, **changes):
    """Changes keys of the index's second line; None takes one away."""
    path = folder / "index.jsonl"
    lines = path.read_text().splitlines()
    row = json.loads(lines[1]) | changes
    lines[1] = json.dumps({key: value for key, value in row.items() if value is not None})
    path.write_text("\n".join(lines))


def refused(read, *arguments):
    with pytest.raises(CorpusError) as caught:
        read(*arguments)
    assert "\n" not in str(caught.value)
    return caught.value


def test_what_is_written_is_read(folder, tmp_path):
    corpus = read_corpus_set(folder)
    assert [clip.id for clip in corpus.clips] == ["c0", "c1", "c2", "c3"]
    assert corpus.clips[0].phones[0] == ("pau", 0.0, 0.8)
    assert [clip.voice for clip in corpus.clips] == ["low", "low+thin", "", "high"]
    write_corpus_set(tmp_path / "copy", corpus)
    again = read_corpus_set(tmp_path / "copy")
    for entry in dataclasses.fields(corpus):
        np.testing.assert_array_equal(getattr(again, entry.name), getattr(corpus, entry.name))
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["index.jsonl", "landmarks.npz"]


def test_the_sound_of_clips_comes_in_their_order(folder):
    clips = read_corpus_set(folder).clips
    expected = [sound_of(opening_of(clip), 180.0 + 40 * clip) for clip in (3, 1)]
    np.testing.assert_array_equal(read_sound(folder, [clips[3], clips[1]]), np.concatenate(expected))


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda text: text.replace(b"\n", b"\n\n"),
        lambda text: b"\n  \t\r\n" + text,
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text.replace(b"\n", b"\n\xef\xbb\xbf"),  # two files put together
        lambda text: text.rstrip(b"\n"),
        lambda text: text.replace(b'"split"', '"text": "one\u2028two\x85three", "split"'.encode()),
    ],
    ids=["blank lines", "blank first", "byte-order mark", "CRLF", "marks inside", "no last break", "U+2028"],
)
def test_an_index_may_be_spaced_and_marked_as_editors_do(folder, rewrite):
    expected = read_corpus_set(folder).clips
    index = folder / "index.jsonl"
    index.write_bytes(rewrite(index.read_bytes()))
    assert read_corpus_set(folder).clips == expected


def test_lines_are_counted_with_blank_ones(folder):
    index = folder / "index.jsonl"
    index.write_text("\n\n" + index.read_text() + "{")
    assert refused(read_corpus_set, folder).field == "line 7"


@pytest.mark.parametrize(
    ("content", "field", "expected"),
    [
        (b"", "", "a clip a line"),
        (b"\n \n", "", "a clip a line"),
        (b'{"id": 1', "line 1", "a JSON object"),
        (b"[" * 100_000, "line 1", "a JSON object"),
        (b"[1]", "line 1", "a JSON object"),
        (b"{}", "line 1: id", "a value"),
        ('{"id": "c0"}'.encode("utf-16"), "", "an index in UTF-8"),
        (b'{"id": "\xff"}', "", "an index in UTF-8"),
    ],
    ids=["empty", "blank", "cut", "deep", "list", "no keys", "utf-16", "latin-1"],
)
def test_an_index_without_clips_is_refused(folder, content, field, expected):
    (folder / "index.jsonl").write_bytes(content)
    error = refused(read_corpus_set, folder)
    assert (error.file, error.field, error.expected) == (str(folder / "index.jsonl"), field, expected)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("id", 7, "a text"),
        ("start", None, "a value"),
        ("start", -640, "a whole number from 0"),
        ("start", 1.5, "a whole number from 0"),
        ("start", True, "a whole number from 0"),
        ("frames", 0, "a whole number from 1"),
        ("frames", "110", "a whole number from 1"),
        ("samples", 640, "70400"),
        ("samples", None, "70400"),
        ("row0", "0", "a whole number from 0"),
        ("row1", 219, "row0 and 110 frames, 220"),
        ("file", "../../elsewhere.wav", "a path inside the folder, or an absolute one"),
        ("file", "audio/../../tones.wav", "a path inside the folder, or an absolute one"),
        ("file", "..", "a path inside the folder, or an absolute one"),
        ("phones", "aa", "a list of [label, start in s, end in s]"),
        ("phones", [["aa", 0.5]], "a list of [label, start in s, end in s]"),
        ("phones", [["aa", 0.0, float("nan")]], "a list of [label, start in s, end in s]"),
        ("phones", [["aa", 0.0, "1"]], "a list of [label, start in s, end in s]"),
        ("phones", [[1, 0.0, 1.0]], "a list of [label, start in s, end in s]"),
        ("phones", [[]], "a list of [label, start in s, end in s]"),
        ("voice", 7, "a text"),
    ],
)
def test_a_clip_that_is_none_is_refused_by_line_and_key(folder, key, value, expected):
    change_line(folder, **{key: value})
    error = refused(read_corpus_set, folder)
    assert (error.file, error.field) == (str(folder / "index.jsonl"), f"line 2: {key}")
    assert error.expected == expected


def test_an_index_of_another_corpus_is_refused(folder):
    change_line(folder, row0=10_000, row1=10_000 + FRAMES)
    error = refused(read_corpus_set, folder)
    assert (error.file, error.field, error.got) == (str(folder / "index.jsonl"), "line 2: row1", "10110")


@pytest.mark.parametrize("kind", [np.float64, np.int8, ">f4", np.float16])
def test_numbers_may_be_of_any_width(folder, kind):
    change_arrays(folder, mean_face=np.ones((68, 3), kind))
    face = read_corpus_set(folder).mean_face
    assert face.dtype == np.float32
    np.testing.assert_array_equal(face, 1)


@pytest.mark.parametrize(
    ("name", "array", "expected"),
    [
        ("coeff", np.array([{"a": 1}], object), "an array of numbers"),
        ("coeff", np.zeros(440), "the shape any x any"),
        ("coeff", np.zeros((0, 2)), "the shape any x any"),
        ("scale", np.array([np.nan, 1]), "finite numbers, in float32 too"),
        ("scale", np.array([1e39, 1]), "finite numbers, in float32 too"),
        ("scale", np.ones(3), "2 entries, as coeff is 440 x 2"),
        ("basis", np.zeros((2, 200)), "the shape any x 204"),
        ("basis", np.zeros((2, 204), complex), "numbers"),
        ("neutral", np.zeros((2, 204)), "the shape any x 68 x 3"),
        ("neutral", None, "an array"),
        ("row_identity", np.zeros(439, int), "440 entries, as coeff is 440 x 2"),
        ("row_identity", np.full(440, 2), "0 to 1, into neutral"),
        ("row_identity", np.full(440, -1), "0 to 1, into neutral"),
        ("row_identity", np.zeros(440), "whole numbers"),
        ("mean_face", np.full((68, 3), "0.5"), "numbers"),
    ],
)
def test_an_array_that_does_not_fit_is_refused_by_name(folder, name, array, expected):
    change_arrays(folder, **{name: array})
    error = refused(read_corpus_set, folder)
    assert (error.file, error.field, error.expected) == (str(folder / "landmarks.npz"), name, expected)


def damaged(content):
    """An npz whose arrays do not unpack, its directory left whole."""
    middle = len(content) // 2
    return (
        content[:middle]
        + bytes(255 - byte for byte in content[middle : middle + 99])
        + content[middle + 99 :]
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\3\4 torn"),
        lambda path: path.write_bytes(path.read_bytes()[:3000]),
        lambda path: path.write_bytes(damaged(path.read_bytes())),
        lambda path: path.write_bytes(b"\x80\x04."),
        lambda path: np.save(path.open("wb"), np.zeros(3)),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["absent", "empty", "torn", "cut short", "damaged", "a pickle", "an npy", "a folder"],
)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of the test's own np.save
def test_landmarks_that_cannot_be_read_are_refused(folder, spoil):
    spoil(folder / "landmarks.npz")
    assert refused(read_corpus_set, folder).file == str(folder / "landmarks.npz")


def test_a_folder_without_an_index_is_refused(tmp_path):
    error = refused(read_corpus_set, tmp_path)
    assert (error.file, error.got) == (str(tmp_path / "index.jsonl"), "no such file")


def test_the_mean_face_alone_is_read_from_any_npz(tmp_path):
    np.savez(tmp_path / "face.npz", mean_face=np.ones((68, 3)))
    np.testing.assert_array_equal(read_mean_face(tmp_path / "face.npz"), np.ones((68, 3), np.float32))
    np.savez(tmp_path / "face.npz", mean_face=np.ones(204))
    assert refused(read_mean_face, tmp_path / "face.npz").field == "mean_face"


@pytest.mark.parametrize(
    ("spoil", "field", "got"),
    [
        (lambda path: path.unlink(), "file of clip c0", "no such file"),
        (lambda path: path.write_bytes(b""), "file of clip c0", "an empty file"),
        (lambda path: path.write_bytes(path.read_bytes()[:100_000]), "clip c0", "49978"),
        (lambda path: path.write_bytes(path.read_bytes()[:44]), "sound of clip c0", None),
    ],
    ids=["absent", "empty", "cut short", "header alone"],
)
def test_sound_that_is_not_there_is_refused_by_file_and_clip(folder, spoil, field, got):
    clips = read_corpus_set(folder).clips
    path = folder / "audio" / "tones.wav"
    spoil(path)
    error = refused(read_sound, folder, clips)
    assert (error.file, error.field) == (str(path), field)
    assert got in (None, error.got)


def test_a_sound_file_may_lie_elsewhere_by_its_whole_path(folder, tmp_path):
    (folder / "audio" / "tones.wav").rename(tmp_path / "moved.wav")
    change_line(folder, file=str(tmp_path / "moved.wav"))
    moved = read_corpus_set(folder).clips[1]
    np.testing.assert_array_equal(read_sound(folder, [moved]), sound_of(opening_of(1), 220.0))
