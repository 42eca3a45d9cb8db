from __future__ import annotations

import re

import pytest
from geneface_checkpoint import refused

from export.geneface.trainer_config import read_config


def test_a_config_inherits(tmp_path):
    bases = tmp_path / "egs" / "bases"
    bases.mkdir(parents=True)
    (bases / "root.yaml").write_text("a: 1\nb: 1\nc: {d: 1, e: 1}\n")
    (bases / "first.yaml").write_text("base_config: ./root.yaml\nb: 2\nc: {d: 2}\n")
    (bases / "second.yaml").write_text("base_config: [./first.yaml, egs/bases/root.yaml]\nf: 3\n")
    own = tmp_path / "egs" / "May"
    own.mkdir()
    text = "base_config: [egs/bases/first.yaml, egs/bases/second.yaml, egs/absent.yaml]\nvideo_id: May\n"
    (own / "config.yaml").write_text(text)
    read = read_config(own / "config.yaml")
    read.pop("base_config")
    assert read == {"a": 1, "b": 2, "c": {"d": 2, "e": 1}, "f": 3, "video_id": "May"}


def test_a_flat_config_is_taken_as_it_is(tmp_path):
    (tmp_path / "base.yaml").write_text("a: 2\nz: 1\n")
    (tmp_path / "config.yaml").write_text("base_config: ./base.yaml\nwork_dir: checkpoints/May/x\na: 1\n")
    assert set(read_config(tmp_path / "config.yaml")) == {"base_config", "work_dir", "a"}


def doubled(line, first="d0: &d0 {k: 1}\n"):
    """YAML whose every line names the one before twice."""
    return first + "".join(line.format(this=i, last=i - 1) for i in range(1, 30))


@pytest.mark.parametrize(
    "text",
    [
        doubled("d{this}: &d{this} {{a: *d{last}, b: *d{last}}}\n"),
        doubled("d{this}: &d{this} [*d{last}, *d{last}]\n", "d0: &d0 [1]\n") + "video_id: *d29\n",
        "x: &x {y: *x}\n",
        "x: &x [*x]\n",
    ],
    ids=["mappings", "lists", "a mapping in itself", "a list in itself"],
)
def test_aliases_that_nest_or_hold_themselves_are_refused(tmp_path, text):
    (tmp_path / "base.yaml").write_text(text)
    (tmp_path / "config.yaml").write_text(f"base_config: ./base.yaml\n{text}")
    said = refused(read_config, tmp_path / "config.yaml")
    assert said.where == str(tmp_path / "config.yaml")
    assert re.search(r"an alias \(\*\w+\) of more than plain values", said.got)


@pytest.mark.parametrize(
    "value", ["a" * 9000, f"[{', '.join(['1'] * 4500)}]", f"{{{', '.join(f'k{i}: 1' for i in range(900))}}}"]
)
def test_aliases_that_multiply_are_refused(tmp_path, value):
    (tmp_path / "config.yaml").write_text(f"x: &x {value}\nvideo_id: [{', '.join(['*x'] * 900)}]\n")
    said = refused(read_config, tmp_path / "config.yaml")
    assert said.where == str(tmp_path / "config.yaml")
    assert "aliases of more than 1000000 characters" in said.got


def test_aliases_of_plain_values_are_read(tmp_path):
    (tmp_path / "config.yaml").write_text("a: &a 0.5\nb: &b [*a, *a]\nc: *b\nd: &d {e: 1}\nf: [*d, *b]\n")
    half = [0.5, 0.5]
    read = read_config(tmp_path / "config.yaml")
    assert read == {"a": 0.5, "b": half, "c": half, "d": {"e": 1}, "f": [{"e": 1}, half]}


@pytest.mark.parametrize("bases", ["5", "{a: b}", "[./base.yaml, [a]]", "[null]", "2001-01-01"])
def test_a_base_that_is_no_text_is_refused(tmp_path, bases):
    (tmp_path / "base.yaml").write_text("a: 1")
    (tmp_path / "config.yaml").write_text(f"base_config: {bases}\n")
    said = refused(read_config, tmp_path / "config.yaml")
    assert said.where == f"{tmp_path / 'config.yaml'}: base_config"
    assert said.expected.startswith("names of files")


def test_a_config_that_links_to_itself_is_refused(tmp_path):
    (tmp_path / "config.yaml").symlink_to("config.yaml")
    said = refused(read_config, tmp_path / "config.yaml")
    assert said.where == str(tmp_path / "config.yaml")
    assert "symbolic links" in said.got


SIXTIES = ":".join(["59"] * 200_000)
LAUGHS = "a: &a {k: v}\n" + "".join(
    f"x{n}: &{chr(98 + n)} {{<<: [*{chr(97 + n)}, *{chr(97 + n)}]}}\n" for n in range(20)
)


@pytest.mark.parametrize(
    "text",
    [
        f"lr: {SIXTIES}",
        f"lr: {SIXTIES}.5",
        "lr: " + "9" * 100_000,
        "lr: !!int ''",
        "lr: !!bool maybe",
        "lr: !!timestamp soon",
        "lr: !!float x",
        LAUGHS,
        "[" * 50_000,
        "? [a, b]\n: c",
        "? {a: b}\n: c",
        "a: !!python/object/apply:os.system [ls]",
        "a: *nobody",
        "a: [",
        "- 1\n- 2",
        "",
        "\x00",
    ],
    ids=range(17),
)
def test_yaml_that_is_no_plain_settings_is_one_line(tmp_path, text):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    said = refused(read_config, file)
    assert said.where.startswith(str(file))
    assert sum(map(len, said)) < len(str(file)) + 300
    assert all(part.isprintable() for part in said)


def test_what_the_trainer_writes_is_read_as_ever(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(
        "work_dir: x\nlr: 0.001\nsteps: 40000\nat: 1:30\nuse: true\nids: &id001 [1, 2]\nsame: *id001\n"
    )
    assert read_config(file) == {
        "work_dir": "x",
        "lr": 0.001,
        "steps": 40000,
        "at": 90,
        "use": True,
        "ids": [1, 2],
        "same": [1, 2],
    }


@pytest.mark.parametrize("base", ["x" * 5000, "./" + "y/" * 3000])
def test_a_base_config_that_can_be_no_name_is_one_line(tmp_path, base):
    file = tmp_path / "config.yaml"
    file.write_text(f'base_config: "{base}"\n')
    said = refused(read_config, file)
    assert said.where.startswith(f"{file}: base_config")
    assert sum(map(len, said)) < len(str(file)) + 300


def test_base_configs_in_a_circle_are_read_once(tmp_path):
    (tmp_path / "a.yaml").write_text("base_config: ./b.yaml\nx: 1\n")
    (tmp_path / "b.yaml").write_text("base_config: [./a.yaml, ./b.yaml]\ny: 2\n")
    values = read_config(tmp_path / "a.yaml")
    assert (values["x"], values["y"]) == (1, 2)
