"""The README and its pages: links lead somewhere, commands and their options exist, examples are valid."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from runtime import Caption
from runtime.bundle import graph_specs, manifest, preview_spec

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MORE_PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "export/demo/README.md"]
LINKED = [*PAGES, *(page for page in MORE_PAGES if page.exists())]
PACKAGES = ("calibration", "export", "model", "runtime", "scripts", "serving", "training")
README_LINES = 150
INTERNAL = re.compile(r"\b(wanted|missed)\b", re.IGNORECASE)
"""Words of internal targets, which are no business of a reader."""
OF_OTHERS = {
    "--disable-auto-complete-config": "tritonserver",
    "--model-config-name": "tritonserver",
    "--model-control-mode": "tritonserver",
}
"""Options in running text that belong to other programs."""

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
COMMAND = re.compile(r"\bpython3? -m (?P<module>\w[\w.]*\w)|\btrt-generate\b|^make (?P<target>[a-z-]+)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


def code(page: Path) -> Iterator[str]:
    """The lines of code blocks, continued ones joined and without comments, and the spans of code in the text."""
    text = page.read_text(encoding="utf-8")
    for language, block in FENCE.findall(text):
        if not language:
            yield from (line.split(" #")[0] for line in block.replace("\\\n", " ").splitlines())
    yield from SPAN.findall(FENCE.sub("", text))


def commands(page: Path) -> Iterator[tuple[re.Match[str], str]]:
    """The commands of a page, with the rest of the line up to the next command."""
    for line in code(page):
        found = list(COMMAND.finditer(line))
        ends = [after.start() for after in found[1:]] + [len(line)]
        for match, end in zip(found, ends, strict=False):
            yield match, line[match.end() : end]


def commands_with_options(page: Path) -> Iterator[tuple[str, set[str]]]:
    """The project's commands on a page that have long options: module and options."""
    for match, rest in commands(page):
        module, options = match["module"] or "runtime", set(OPTION.findall(rest))
        if not match["target"] and options and module.split(".")[0] in PACKAGES:
            yield module, options


@pytest.fixture(scope="module")
def options_of() -> dict[str, set[str]]:
    """The long options of every command that is named with some."""
    modules = sorted({module for page in LINKED for module, _ in commands_with_options(page)})
    command = [sys.executable, "tests/support/command_options.py", *modules]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    return {module: set(options) for module, options in json.loads(done.stdout.splitlines()[-1]).items()}


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", LINKED, ids=names(LINKED))
def test_links_lead_to_files_and_headings(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for link in links:
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


@pytest.mark.parametrize("page", LINKED, ids=names(LINKED))
def test_commands_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for match, _ in commands(page):
        if target := match["target"]:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
        elif module := match["module"]:
            assert find_spec(module) is not None, f"python -m {module}"


@pytest.mark.parametrize("page", LINKED, ids=names(LINKED))
def test_options_exist(page, options_of):
    for module, options in commands_with_options(page):
        assert options <= options_of[module], f"{module}: {options - options_of[module]}"


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_options_in_running_text_exist(page, options_of):
    known = set(OF_OTHERS).union(*options_of.values())
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    named = {option for span in SPAN.findall(text) if span.startswith("--") for option in OPTION.findall(span)}
    assert named <= known, named - known


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_source_files_that_are_named_exist(page):
    for span in SPAN.findall(page.read_text(encoding="utf-8")):
        if re.fullmatch(rf"(?:{'|'.join(PACKAGES)}|tests|deploy|docs)/[\w./]+\.\w+", span):
            assert (ROOT / span).exists(), span


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_pages_name_no_internal_targets(page):
    assert not [line for line in page.read_text(encoding="utf-8").splitlines() if INTERNAL.search(line)]


def test_the_example_caption_is_one():
    blocks = FENCE.findall((ROOT / "docs/captions.md").read_text(encoding="utf-8"))
    captions = [Caption.parse(block) for language, block in blocks if language == "json"]
    assert captions, "docs/captions.md has no example"


def test_the_architecture_names_every_room():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    folders = {file.parent.relative_to(ROOT).as_posix() for name in PACKAGES for file in (ROOT / name).rglob("*.py")}
    assert not [folder for folder in sorted(folders) if f"| `{folder}/` |" not in text]


def test_the_format_names_every_field_of_the_manifest():
    text = (ROOT / "docs/bundle-format.md").read_text(encoding="utf-8")
    modules = (manifest, graph_specs, preview_spec)
    kinds = [kind for module in modules for kind in vars(module).values() if is_dataclass(kind)]
    named = {field.name for kind in kinds for field in fields(kind)}
    assert {"graphs", "sha256", "max_aspect", "profiles", "activation_bytes", "offsets"} <= named
    assert not [name for name in sorted(named) if not re.search(rf"[`\"]{name}[`\"]", text)]
