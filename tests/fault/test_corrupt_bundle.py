"""Bundles that were damaged, shortened or forged: always one line that names the file and the field."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
import struct
import zlib

import cv2
import numpy as np
import plate_factory
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from models import bundle_files
from models.bundle_files import MAX_FILE_BYTES, BundleError
from models.speaker import load_speaker
from models.speaker_settings import checksum

UNREADABLE = "one that cannot be decoded"
FILES = (
    "speaker.json",
    "motion.onnx",
    "condition.onnx",
    "head.safetensors",
    "torso.safetensors",
    "poses.safetensors",
    "background.png",
    "plates.mkv",
    "plates.safetensors",
    "MODEL_CARD.md",
)
WRITTEN_ANEW = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A bundle of few bytes, so that damage is likely to hit something that matters."""
    folder = tmp_path_factory.mktemp("small") / "Tiny"
    return plate_factory.write_plated_bundle(folder, image_size_px=32).path


@pytest.fixture
def bundle(small, tmp_path):
    shutil.copytree(small, tmp_path / "Tiny")
    return tmp_path / "Tiny"


def refused(bundle):
    """Which file and which field of it are refused, what was expected and what was got."""
    with pytest.raises(BundleError) as caught:
        load_speaker(bundle)
    error, (_, _, way_out) = caught.value, str(caught.value).partition("; ")
    assert len(str(error)) < 800
    assert way_out
    return pathlib.Path(error.file).name, error.field, error.expected, error.got


def read_or_refused(bundle):
    """Whether the bundle was read; any error but a one-line BundleError passes through."""
    try:
        load_speaker(bundle)
    except BundleError as error:
        message = str(error)
    else:
        return True
    assert "\n" not in message
    return False


def reseal(bundle, change=None):
    """Forges the bundle: applies `change` to speaker.json and makes every size and hash true again."""
    document = json.loads((bundle / "speaker.json").read_text())
    for name in document["files"]:
        if (bundle / name).exists():
            content = (bundle / name).read_bytes()
            document["files"][name] = {
                "sha256": hashlib.sha256(content).hexdigest(),
                "size_bytes": len(content),
            }
    if change is not None:
        change(document)
    document["checksum"] = checksum(document)
    (bundle / "speaker.json").write_text(json.dumps(document))


def put(document, dotted, value):
    """Sets, or with value ... removes, the value at a dotted path."""
    *way, last = dotted.split(".")
    for key in way:
        document = document[int(key) if isinstance(document, list) else key]
    if value is ...:
        del document[last]
    else:
        document[int(last) if isinstance(document, list) else last] = value


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_in_any_file(bundle, name):
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 0x01
    (bundle / name).write_bytes(content)
    assert refused(bundle)[0] == name


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_a_shortened_file(bundle, name, kept):
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[: int(len(content) * kept)])
    file, *said = refused(bundle)
    assert file == name
    if name != "speaker.json":
        assert said == ["size", f"{len(content)} bytes", f"{int(len(content) * kept)} bytes"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(bundle, name):
    (bundle / name).unlink()
    assert refused(bundle) == (name, "file", "a file", "no such file")


def test_a_folder_in_place_of_a_file(bundle):
    (bundle / "motion.onnx").unlink()
    (bundle / "motion.onnx").mkdir()
    assert refused(bundle) == ("motion.onnx", "file", "a file", "something else")


def test_no_folder_at_all(tmp_path):
    expected = "nothing-here", "folder", "a speaker bundle", "no such folder"
    assert refused(tmp_path / "nothing-here") == expected


def test_a_file_too_many(bundle):
    (bundle / "extra.pkl").write_bytes(b"x")
    assert refused(bundle)[:2] == ("extra.pkl", "file")


def test_what_a_file_browser_leaves_behind_is_no_fault(bundle):
    (bundle / ".DS_Store").write_bytes(b"x")
    load_speaker(bundle)


@pytest.mark.parametrize("version", [0, 2, "1", None, True])
def test_another_schema_version(bundle, version):
    reseal(bundle, lambda document: document.update(schema_version=version))
    assert refused(bundle) == ("speaker.json", "schema_version", "1", json.dumps(version))


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "..\\motion.onnx",
        "sub/motion.onnx",
        "motion.onnx\0",
        "other.onnx",
        "a\nb",
        "",
        "CON",
    ],
)
def test_a_hostile_file_name(bundle, name):
    def change(document):
        document["files"][name] = document["files"]["motion.onnx"]

    reseal(bundle, change)
    file, field, expected, _ = refused(bundle)
    assert file == "speaker.json"
    assert field.startswith("files.")
    assert "motion.onnx" in expected


@pytest.mark.parametrize(
    ("field", "value", "where", "expected", "got"),
    [
        ("motion.landmark_std", ..., "motion.landmark_std", "a value", "none: the key is missing"),
        ("files.head.safetensors", None, "files.head.safetensors", "an object", "null"),
        ("origin", ..., "origin", "a value", "none: the key is missing"),
        ("origin.consent", 7, "origin.consent", "a text", "7"),
        ("synthetic", "yes", "synthetic", "true or false", '"yes"'),
        ("nickname", "x", "nickname", "no further key", "an unknown key"),
        ("motion.windw", 3, "motion.windw", "no further key", "an unknown key"),
        ("fps", 30, "fps", "25", "30"),
        ("sample_rate_hz", 48000, "sample_rate_hz", "16000", "48000"),
        ("image_size_px", 10**9, "image_size_px", "16 to 4096", "1000000000"),
        ("image_size_px", 64, "background.png: size", "64x64 pixels", "32x32"),
        ("motion.kind", "hubert", "motion.kind", '"pcm" or "features"', '"hubert"'),
        ("motion.kind", "features", "motion.features", "an object, as kind is features", '"null"'),
        ("motion.window_samples", 5120, "motion.window_samples", "5312", "5120"),
        ("motion.lookahead_frames", 8, "motion.lookahead_frames", "less than window_frames (8)", "8"),
        ("motion.landmark_std.3.1", 0.0, "motion.landmark_std", "values above 0", "0.0"),
        (
            "motion.landmark_mean.3.1",
            1e30,
            "motion.landmark_mean",
            "68x3 numbers within 1e6",
            "a value outside or not finite",
        ),
        ("motion.landmark_mean.3", [0.0], "motion.landmark_mean", "68x3 numbers", "something else"),
        ("motion.ema", 1.5, "motion.ema", "0 to 0.99", "1.5"),
        ("condition.size", 64, "condition.size", "8 (what head.ambient_net takes)", "64"),
        ("camera.focal_px", -1, "camera.focal_px", "1 to 1e+06", "-1.0"),
        ("camera.cx_px", 500.0, "camera.cx_px", "0 to 32", "500.0"),
        ("camera.offset", [0, 0], "camera.offset", "a list of 3", "a list of 2"),
        ("head.grid_size", 100, "head.grid_size", "a power of two", "100"),
        ("head.grid_size", 64, "head.safetensors: density_bitfield", "shape 32768", "262144"),
        ("head.position_grid.levels", 5, "head.sigma_net[0]", "18", "16"),
        ("head.position_grid.rows", 10**12, "head.position_grid.rows", "1 to 67108864", "1000000000000"),
        (
            "head.position_grid.rows",
            10,
            "head.safetensors: position_embedder.embeddings",
            "shape 10x2",
            "4096x2",
        ),
        ("head.color_net", [27, 16, 4], "head.color_net[-1]", "3", "4"),
        ("head.sigma_net", [16, 16, 99], "head.color_net[0]", "118", "27"),
        (
            "head.ambient_net",
            [16, 20, 2],
            "head.safetensors: ambient_net.net.0.weight",
            "shape 20x16",
            "16x16",
        ),
        ("torso", None, "files.torso.safetensors", "none, as torso is null", "an entry"),
        ("torso.pose_octaves", 5, "torso.deform_net[0]", "116", "104"),
        ("figures", {"psnr_db": "high"}, "figures.psnr_db", "a number", '"high"'),
    ],
)
def test_a_wrong_value_in_speaker_json(bundle, field, value, where, expected, got):
    if field.startswith("files."):
        reseal(bundle, lambda document: document["files"].update({field[6:]: value}))
    else:
        reseal(bundle, lambda document: put(document, field, value))
    file, *said = refused(bundle)
    named = where.rpartition(": ")
    assert (file, said[0], said[2]) == (named[0] or "speaker.json", named[2], got)
    assert expected in said[1]


def test_a_required_file_that_is_not_listed(bundle):
    reseal(bundle, lambda document: document["files"].pop("motion.onnx"))
    assert refused(bundle) == ("speaker.json", "files.motion.onnx", "its size and hash", "nothing")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b'{"schema_version": 1',
        b"[" * 100_000,
        b'{"a": 1, "a": 2}',
        b'{"schema_version": NaN}',
        b'{"schema_version": ' + b"9" * 6000 + b"}",
        b"{" + b" " * (5 << 20) + b"}",
    ],
)
def test_json_garbage(bundle, text):
    (bundle / "speaker.json").write_bytes(text)
    assert refused(bundle)[0] == "speaker.json"


def tampered(bundle, file, change):
    """Rewrites one safetensors file after `change` and makes every hash true again."""
    tensors = load((bundle / file).read_bytes())
    change(tensors)
    (bundle / file).write_bytes(save(tensors))
    reseal(bundle)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("head.safetensors", "position_embedder.embeddings"),
        ("head.safetensors", "sigma_net.net.1.weight"),
        ("head.safetensors", "individual_code"),
        ("head.safetensors", "aabb"),
        ("torso.safetensors", "torso_embedder.embeddings"),
        ("torso.safetensors", "occupancy"),
        ("poses.safetensors", "c2w"),
        ("poses.safetensors", "blink"),
    ],
)
def test_a_number_that_is_none(bundle, file, key, bad):
    tampered(bundle, file, lambda tensors: tensors[key].reshape(-1).__setitem__(3, bad))
    assert refused(bundle)[:3] == (file, key, "finite numbers")
    assert refused(bundle)[3].startswith(f"{bad} at ")


@pytest.mark.parametrize("file", ["head.safetensors", "torso.safetensors", "poses.safetensors"])
def test_each_array_missing_misshapen_or_of_another_type(small, tmp_path, file):
    for key in load((small / file).read_bytes()):
        for number, (change, said) in enumerate(
            [
                (lambda t, key=key: t.pop(key), "an array"),
                (lambda t, key=key: t.update({key: t[key][None]}), "shape"),
                (lambda t, key=key: t.update({key: t[key].astype(np.int64)}), "dtype"),
            ]
        ):
            bundle = tmp_path / f"{key}{number}"
            shutil.copytree(small, bundle)
            tampered(bundle, file, change)
            assert refused(bundle)[:2] == (file, key)
            assert refused(bundle)[2].startswith(said)


def test_an_unknown_array(bundle):
    tampered(bundle, "head.safetensors", lambda tensors: tensors.update(surprise=np.zeros(1, np.float32)))
    assert refused(bundle)[:2] == ("head.safetensors", "surprise")


def far_away(poses):
    poses = poses.copy()
    poses[:, 0, 3] = 3e38
    return poses


@pytest.mark.parametrize(
    ("file", "key", "change", "got"),
    [
        ("head.safetensors", "density_bitfield", lambda a: a * 0, "an empty grid"),
        ("head.safetensors", "aabb", lambda a: -a, "[1.0, 0.5, 1.0, -1.0, -0.5, -1.0]"),
        ("head.safetensors", "aabb", lambda a: a * 2, "[-2.0, -1.0, -2.0, 2.0, 1.0, 2.0]"),
        (
            "head.safetensors",
            "position_embedder.offsets",
            lambda a: a[::-1].copy(),
            "[4096, 3072, 2048, 1024, 0]",
        ),
        ("head.safetensors", "position_embedder.offsets", lambda a: a // 2, "[0, 512, 1024, 1536, 2048]"),
        ("head.safetensors", "ambient_embedder.offsets", lambda a: a * 0, "[0, 0, 0, 0, 0]"),
        ("poses.safetensors", "c2w", lambda a: a * 1.01, "an error of 0.0303"),
        ("poses.safetensors", "c2w", lambda a: a * np.float32([1, 1, -1, 1]), "an error of 2"),
        ("poses.safetensors", "c2w", lambda a: a[:0], "none"),
        ("poses.safetensors", "c2w", far_away, "one at 3e+38"),
        ("poses.safetensors", "blink", lambda a: a[:4].copy(), "0.8"),
    ],
)
def test_arrays_out_of_range(bundle, file, key, change, got):
    tampered(bundle, file, lambda tensors: tensors.update({key: change(tensors[key])}))
    named, field, _, was = refused(bundle)
    assert (named, field.partition("[")[0], was) == (file, key, got)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 64, b"\x80\x04\x95pickle", (2**60).to_bytes(8, "little") + b"{}"]
)
def test_a_forged_safetensors_file(bundle, content):
    (bundle / "head.safetensors").write_bytes(content or b"x")
    reseal(bundle)
    assert refused(bundle)[:3] == ("head.safetensors", "content", "safetensors")


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


def forged_png(rows, *, packed=None, more=None):
    """A 32 x 32 RGB PNG, sound but for what its pixels unpack to, or for one chunk more."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, 2, 0, 0, 0))
    extra = chunk(*more) if more else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + extra
        + chunk(b"IDAT", packed or zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("make", "field", "got"),
    [
        (lambda: b"GIF89a" + b"x" * 100, "content", "something else"),
        (lambda: b"\x89PNG", "content", "something else"),
        (lambda: png(np.zeros((32, 32, 3), np.uint8)).replace(b"IHDR", b"abCd"), "content", "something else"),
        (lambda: png(np.zeros((32, 40, 3), np.uint8)), "size", "40x32"),
        (lambda: png(np.zeros((32, 32, 3), np.uint8))[:40], "content", UNREADABLE),
        (lambda: png(np.zeros((32, 32, 3), np.uint8))[:-30], "content", UNREADABLE),
        (
            lambda: png(np.zeros((32, 32, 3), np.uint8))[:33] + b"\xff" * 200,
            "content",
            UNREADABLE,
        ),
        (
            lambda: forged_png(b"\0" * 97 * 31),
            "content",
            UNREADABLE,
        ),  # the last row is missing
        (lambda: forged_png(b"\0" * 97 * 33), "content", UNREADABLE),
        (
            lambda: forged_png(b"\0" * 97 * 32, more=(b"tRNS", b"\0" * 6)),
            "content",
            UNREADABLE,
        ),
        (lambda: forged_png(b"", packed=b"no zlib"), "content", UNREADABLE),
        (lambda: png(np.zeros((32, 32, 3), np.uint16)), "content", "a PNG of another kind"),
        (lambda: png(np.zeros((32, 32, 4), np.uint8)), "content", "a PNG of another kind"),
        (lambda: png(np.zeros((32, 32), np.uint8)), "content", "a PNG of another kind"),
    ],
)
def test_a_forged_background(bundle, make, field, got):
    (bundle / "background.png").write_bytes(make())
    reseal(bundle)
    file, *said = refused(bundle)
    assert (file, said[0], said[2]) == ("background.png", field, got)


def with_chunks(content, *chunks, at=33):
    """A PNG with further chunks, behind its header unless said otherwise."""
    made = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return content[:at] + made + content[at:]


def test_only_header_and_pixels_reach_the_decoder(bundle, monkeypatch):
    image = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
    bomb = zlib.compress(b"\0" * (64 << 20))
    chunks = [
        (b"zTXt", b"Comment\0\0" + bomb),
        (b"iCCP", b"profile\0\0" + bomb),
        (b"eXIf", b"MM" * 1000),
        (b"PLTE", bytes(3 * 256)),
    ]
    (bundle / "background.png").write_bytes(with_chunks(png(image[:, :, ::-1]), *chunks))
    reseal(bundle)
    decode, seen = bundle_files._decode_png, []
    monkeypatch.setattr(bundle_files, "_decode_png", lambda content: seen.append(content) or decode(content))
    np.testing.assert_array_equal(load_speaker(bundle).scene.background, image)
    (content,) = seen
    kinds, at = [], 8
    while at < len(content):
        kinds.append(content[at + 4 : at + 8])
        at += 12 + int.from_bytes(content[at : at + 4], "big")
    assert kinds == [b"IHDR", b"IDAT", b"IEND"]


@pytest.mark.parametrize(
    "forge",
    [
        lambda content: with_chunks(content, (b"IHDR", content[16:29])),  # a second one
        lambda content: with_chunks(content, (b"ABCD", b"x")),  # critical and unknown
        lambda content: content + b"x" * 20,
        lambda content: content[:-12],  # no end
    ],
)
def test_a_png_that_is_more_or_less_than_one(bundle, forge):
    (bundle / "background.png").write_bytes(forge(png(np.zeros((32, 32, 3), np.uint8))))
    reseal(bundle)
    expected = "background.png", "content", "a 32x32 RGB PNG", UNREADABLE
    assert refused(bundle) == expected


@pytest.mark.parametrize("name", FILES)
def test_each_kind_of_file_has_a_limit_checked_before_it_is_read(bundle, name, monkeypatch):
    limit_bytes = MAX_FILE_BYTES[name]
    with (bundle / name).open("r+b") as file:
        file.truncate(limit_bytes + 1)  # a hole: it takes no place
    real = bundle_files._pieces

    def pieces(file, limit_bytes):
        for piece in real(file, limit_bytes):
            assert file.name != name, "it was read"
            yield piece

    monkeypatch.setattr(bundle_files, "_pieces", pieces)
    assert refused(bundle) == (name, "size", f"at most {limit_bytes} bytes", f"{limit_bytes + 1} bytes")


def test_a_size_beyond_its_kind_is_refused_as_it_stands_in_the_table(bundle):
    def change(document):
        document["files"]["MODEL_CARD.md"]["size_bytes"] = 1_900_000_000

    reseal(bundle, change)
    field = "files.MODEL_CARD.md.size_bytes"
    assert refused(bundle) == ("speaker.json", field, "at most 1048576", "1900000000")


def test_content_that_is_only_hashed_is_not_kept_in_memory(bundle, monkeypatch):
    (bundle / "MODEL_CARD.md").write_bytes(b"x" * 1_000_000)
    reseal(bundle)
    pieces, read = [], bundle_files._pieces

    def counted(file, limit_bytes):
        for piece in read(file, limit_bytes):
            pieces.append((file.name, len(piece)))
            yield piece

    monkeypatch.setattr(bundle_files, "_PIECE_BYTES", 1000)
    monkeypatch.setattr(bundle_files, "_pieces", counted)
    load_speaker(bundle)
    card = [size for name, size in pieces if name == "MODEL_CARD.md"]
    assert card == [1000] * 1000


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
@pytest.mark.parametrize("name", FILES)
def test_a_pipe_in_place_of_a_file_is_not_waited_for(bundle, name):
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    assert refused(bundle) == (name, "file", "a file", "something else")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_pipe_that_takes_a_file_s_place_after_it_was_looked_at(bundle, monkeypatch):
    (bundle / "MODEL_CARD.md").unlink()
    os.mkfifo(bundle / "MODEL_CARD.md")
    monkeypatch.setattr(pathlib.Path, "is_file", lambda path: True)
    assert refused(bundle) == ("MODEL_CARD.md", "file", "a file", "something else")


def test_a_file_that_grows_while_it_is_read(bundle, monkeypatch):
    real = os.fstat

    def before(number):
        status = list(real(number))
        status[6] = 10  # its size
        return os.stat_result(status)

    monkeypatch.setattr(bundle_files.os, "fstat", before)
    assert refused(bundle)[1:3] == ("size", "10 bytes")


def test_a_link_that_never_ends_is_no_file(bundle):
    (bundle / "motion.onnx").unlink()
    (bundle / "motion.onnx").symlink_to("/dev/zero")
    assert refused(bundle) == ("motion.onnx", "file", "a file", "something else")


def test_an_unreadable_file(bundle, monkeypatch):
    real = os.open

    def denied(path, *given, **more):
        if str(path).endswith("head.safetensors"):
            raise PermissionError(13, "Permission denied")
        return real(path, *given, **more)

    monkeypatch.setattr(os, "open", denied)
    assert refused(bundle) == ("head.safetensors", "file", "a readable file", "Permission denied")


@WRITTEN_ANEW
@given(
    name=st.sampled_from(FILES),
    where=st.floats(0, 1, exclude_max=True),
    patch=st.binary(min_size=1, max_size=16),
    grow=st.booleans(),
    forged=st.booleans(),
)
def test_random_damage_raises_nothing_but_a_bundle_error(small, tmp_path, name, where, patch, grow, forged):
    bundle = tmp_path / "Tiny"
    shutil.rmtree(bundle, ignore_errors=True)
    shutil.copytree(small, bundle)
    content = (bundle / name).read_bytes()
    at = int(where * len(content))
    damaged = content[:at] + patch + content[at if grow else at + len(patch) :]
    (bundle / name).write_bytes(damaged)
    if forged and name != "speaker.json":
        reseal(bundle)
    if read_or_refused(bundle):
        # Damage that keeps every promise: the same bytes, spaces, a forged value in range.
        assert forged or damaged == content or json.loads(damaged) == json.loads(content)


@WRITTEN_ANEW
@given(
    where=st.integers(0, 10_000),
    value=st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.lists(st.integers(-5, 5), max_size=4),
        st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    ),
)
def test_random_values_in_speaker_json_raise_nothing_but_a_bundle_error(small, tmp_path, where, value):
    bundle = tmp_path / "Tiny"
    shutil.rmtree(bundle, ignore_errors=True)
    shutil.copytree(small, bundle)
    document = json.loads((bundle / "speaker.json").read_text())
    places = []

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)) and len(node[key]) < 68:
                walk(node[key])

    walk(document)
    node, key = places[where % len(places)]
    node[key] = value
    try:
        document["checksum"] = checksum(document)
        text = json.dumps(document)
    except ValueError:
        text = json.dumps(document)  # NaN and infinity: not JSON, must be refused as such
    (bundle / "speaker.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    read_or_refused(bundle)
