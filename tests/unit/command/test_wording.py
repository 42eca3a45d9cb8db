"""What each program says, word for word: a refusal or two, and the shape of its help."""

from __future__ import annotations

import pytest

from export import cli as export_cli
from streaming import cli as stream_cli
from training import cli as train_cli

PROGRAMS = {"geneface-stream": stream_cli, "geneface-train": train_cli, "geneface-export": export_cli}


def ended(program, capsys, *arguments):
    """Returns a program's exit code, and what it said on stdout and on stderr."""
    try:
        code = PROGRAMS[program].main(list(arguments))
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize(
    ("program", "arguments", "says"),
    [
        (
            "geneface-stream",
            "--port 70000",
            "geneface-stream: --port: expected 0 (any) to 65535, got 70000; 8010 is the default",
        ),
        (
            "geneface-stream",
            "--sead 1",
            "geneface-stream: unrecognized arguments: --sead 1; geneface-stream --help shows what there is",
        ),
        (
            "geneface-train",
            "head --data /no/such --out /no/out",
            "geneface-train head: /no/such: expected a folder of training data, found nothing; check --data",
        ),
        (
            "geneface-export",
            "seal /no/such",
            "geneface-export seal: /no/such/speaker.json: file: expected a file, got no such file; "
            "copy the bundle again or rebuild it with `geneface-export bundle`",
        ),
    ],
    ids=lambda value: value if " " not in value else "",
)
def test_a_refusal_says_where_what_was_expected_what_came_and_the_way_out(capsys, program, arguments, says):
    assert ended(program, capsys, *arguments.split()) == (2, "", f"{says}\n")


@pytest.mark.parametrize(
    ("program", "sections"),
    [
        (
            "geneface-stream",
            [
                "options",
                "who speaks, and how it is drawn",
                "a recording into a video",
                "the live server",
                "this machine's own microphone",
            ],
        ),
        ("geneface-train", ["tasks", "positional arguments", "options"]),
        ("geneface-export", ["positional arguments", "options"]),
    ],
)
def test_help_begins_with_the_usage_and_has_its_sections(capsys, program, sections):
    code, text, errors = ended(program, capsys, "--help")
    assert (code, errors) == (0, "")
    assert text.startswith(f"usage: {program} [-h] ")
    assert [line[:-1] for line in text.splitlines() if line[-1:] == ":" and line[0] != " "] == sections
