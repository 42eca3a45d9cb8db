"""What a reader of the repository meets: links that lead somewhere, and no trace of one machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# Written in pieces, so that this file passes its own test.
ONE_MACHINE = re.compile(
    "|".join(("/wo" + "rk/", r"/ho" + r"me/\w", r"/Use" + r"rs/\w", "/ro" + "ot/", r"C:\\+Use" + "rs"))
)
LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)")
PICTURE_TAG = re.compile(r'<img[^>]*\bsrc="([^"]+)"')


def files_of_the_tree() -> list[Path]:
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive
        made = re.compile(r"/(\.(?!ci/)|__pycache__/|build/|node_modules/|[^/]+\.egg-info/)")
        return [p for p in ROOT.rglob("*") if p.is_file() and not made.search(f"/{p.relative_to(ROOT)}")]
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def pages() -> list[Path]:
    return [p for p in files_of_the_tree() if p.suffix == ".md"]


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Heading anchors as the usual hosts make them."""
    titles = re.findall(r"^#+ +(.+?) *$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


def test_no_path_of_one_machine():
    found = []
    for file in files_of_the_tree():
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{file.relative_to(ROOT)}: {m.group()}" for m in ONE_MACHINE.finditer(text)]
    assert not found


@pytest.mark.parametrize("page", pages(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_resolve(page):
    targets = [t for _, t in LINK.findall(prose(page))] + PICTURE_TAG.findall(prose(page))
    broken = []
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def test_the_tree_in_the_readme_exists():
    readme = (ROOT / "README.md").read_text()
    folders = re.findall(r"^([a-z_]+)/ +\S", readme, flags=re.MULTILINE)
    assert "streaming" in folders
    assert [f for f in folders if not (ROOT / f).is_dir()] == []


def guides() -> list[Path]:
    """The pages that describe the tree as it is; the change log names what was."""
    return [
        p for p in pages() if p.relative_to(ROOT).parts[0] in ("docs", p.name) and p.name != "CHANGELOG.md"
    ]


@pytest.mark.parametrize("page", guides(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_files_that_a_page_names_exist(page):
    """Of all names in code spans those that begin with a folder of ours, or end like a source file."""
    files = [file.relative_to(ROOT) for file in files_of_the_tree()]
    paths = {path.as_posix() for file in files for path in (file, *file.parents)}
    folders, names = {file.parts[0] for file in files}, {file.name for file in files}
    missing = set()
    for span in re.findall(r"`([^`\n]+)`", prose(page)):
        for name in (word.rstrip("/.") for word in re.findall(r"[\w./-]+", span)):
            if "/" in name and name.split("/")[0] in folders:
                missing |= {name} - paths
            elif re.fullmatch(r"\w+\.(py|js|cuh?)", name):
                missing |= {name} - names
    assert not missing


@pytest.mark.parametrize(
    ("page", "lines"), [("README.md", 150), ("AGENTS.md", 100), ("CONTRIBUTING.md", 100)]
)
def test_front_pages_stay_short(page, lines):
    assert len((ROOT / page).read_text().splitlines()) < lines


def test_a_module_s_name_says_what_it_holds():
    vague = re.compile(r"(^|_)(utils?|common|helpers?|manager|opt|misc)(_|\.py$)")
    assert [f for f in files_of_the_tree() if f.suffix == ".py" and vague.search(f.name)] == []
