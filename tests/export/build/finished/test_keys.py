"""Keys of finished stages: whatever a stage is made from changes its key, the program's own sources included."""

import shutil

import pytest

from export.build.finished.keys import ROOT, key_of


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A copy of this program's packages to change."""
    root = tmp_path_factory.mktemp("program")
    for package in ("calibration", "export", "model", "runtime", "serving"):
        for file in (ROOT / package).rglob("*.py"):
            copy = root / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    return root


def test_a_copy_of_the_program_has_its_key(program):
    """Where it lies does not matter: an installed program takes what a checkout has built."""
    assert key_of({"stage": "dit_cond"}, program) == key_of({"stage": "dit_cond"})


@pytest.mark.parametrize(
    "file",
    [
        "export/graph/passes/qdq.py",
        "export/graph/trace.py",
        "calibration/points.py",
        "export/memory.py",
        "model/checkpoint/nf4.py",
        "model/transformer.py",
        "runtime/tensorrt/package.py",
        "runtime/constants.py",
    ],
)
def test_a_changed_source_changes_the_key(program, file):
    """However deep the file lies: a stage that an older program has built must not be taken."""
    source = program / file
    before, text = key_of({}, program), source.read_text(encoding="utf-8")
    source.write_text(text + "\n", encoding="utf-8")
    assert key_of({}, program) != before
    source.write_text(text, encoding="utf-8")
    assert key_of({}, program) == before


def test_new_removed_and_renamed_sources_change_the_key(program):
    before = key_of({}, program)
    added = program / "export" / "graph" / "passes" / "new_room" / "new_pass.py"
    added.parent.mkdir()
    added.write_text("", encoding="utf-8")
    with_it = key_of({}, program)
    renamed = added.rename(added.with_name("other_pass.py"))
    assert len({before, with_it, key_of({}, program)}) == 3
    renamed.unlink()
    assert key_of({}, program) == before


def test_what_does_not_build_stages_leaves_the_key(program):
    before = key_of({}, program)
    (program / "serving" / "new.py").write_text("import os\n", encoding="utf-8")
    (program / "export" / "notes.md").write_text("notes\n", encoding="utf-8")
    assert key_of({}, program) == before


def test_inputs_are_told_apart():
    keys = {key_of(inputs) for inputs in ({}, {"stage": "a"}, {"stage": "b"}, {"graph": "a"}, {"stage": None})}
    assert len(keys) == 5
