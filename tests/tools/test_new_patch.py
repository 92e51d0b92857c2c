"""The tool that makes the two folders of a new entry."""

from __future__ import annotations

import re
import runpy
import shutil
from dataclasses import fields
from pathlib import Path

import new_patch
import pytest

from sglang_commfix.engine.errors import RegisterError
from sglang_commfix.engine.register import Patch, load_folder, patches_folder


ID = "12345-what-is-wrong"
REQUIRED = (
    "kind", "affected", "links", "title", "seen", "flags", "symptom", "cause", "hits",
    "change", "shown",
)  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with an empty register."""
    (tmp_path / "patches").mkdir()
    shutil.copy(patches_folder() / "releases.json", tmp_path / "patches")
    return tmp_path


@pytest.fixture
def made(root: Path) -> Path:
    """The `patch.toml` of a new entry."""
    assert new_patch.main([ID], root) == 0
    return root / "patches" / ID / "patch.toml"


@pytest.fixture
def filled(made: Path) -> Path:
    """It, with every key filled in."""
    made.write_text(re.sub(r"^#(?=[a-z\[])", "", made.read_text(), flags=re.MULTILINE))
    (made.parent / "added.py").write_text("def commfix_added():\n    pass\n")
    return made


def test_an_entry_that_is_filled_in_is_accepted_and_has_every_key(filled: Path) -> None:
    (patch,) = load_folder(filled.parents[1], complete=False).patches

    assert (patch.id, patch.pr) == (ID, 12345)
    assert [edit.operation for edit in patch.edits] == ["replace", "append"]
    assert len(patch.faulty) == len(patch.sound) == len(patch.differences) == 1
    singular = {"edits": "edit", "differences": "difference"}
    of_an_entry = {field.name for field in fields(Patch)} - {"fingerprints"}
    of_an_edit = {
        "module",
        "scope",
        "find",
        "replace",
        "append",
        "releases",
        "unmentioned",
        "why",
        "given",
        "after",
    }
    keys = set(re.findall(r"^(?:\[\[)?([a-z_]+)(?: = |\]\])", filled.read_text(), re.MULTILINE))
    assert {singular.get(name, name) for name in of_an_entry | of_an_edit} <= keys


def test_every_key_has_a_line_that_explains_it(made: Path) -> None:
    lines = made.read_text().splitlines()
    keys = [n for n, line in enumerate(lines) if re.match(r"#?(\[\[)?[a-z_]+( = |\]\])", line)]

    assert len(keys) > 25
    assert all(re.match(r"# [A-Za-z]", lines[number - 1]) for number in keys)


def test_it_has_every_file_that_nobody_generates(made: Path, root: Path) -> None:
    told = {file.name: file.read_text() for file in (root / "tests" / "patches" / ID).iterdir()}

    assert told.keys() == {"test_source.py", "evidence.md", "history.toml"}
    lists = re.findall(r"^(\w+) = \[\]$", told["history.toml"], re.MULTILINE)
    assert lists == ["brought", "mended"]


def test_until_it_is_filled_in_the_register_names_file_and_key(made: Path) -> None:
    with pytest.raises(RegisterError, match=f"{re.escape(str(made))}: 'kind' is missing"):
        load_folder(made.parents[1], complete=False)


@pytest.mark.parametrize("key", REQUIRED)
def test_a_key_that_was_forgotten_is_named_with_its_file(filled: Path, key: str) -> None:
    filled.write_text(re.sub(rf"^{key} = ", f"#{key} = ", filled.read_text(), flags=re.MULTILINE))

    with pytest.raises(RegisterError, match=f"{re.escape(str(filled))}: '{key}' is missing"):
        load_folder(filled.parents[1], complete=False)


def test_its_test_fails_until_it_is_written(made: Path, root: Path) -> None:
    (file,) = (root / "tests" / "patches" / ID).glob("*.py")
    tests = [value for name, value in runpy.run_path(str(file)).items() if name.startswith("test_")]

    assert file.name.startswith("test_")
    assert len(tests) == 1
    with pytest.raises(pytest.fail.Exception, match=f"{ID} is not proved yet"):
        tests[0]()


def test_an_entry_without_a_pull_request_has_no_number(root: Path) -> None:
    assert new_patch.main(["some-fault"], root) == 0
    assert "\n#pr = " in (root / "patches" / "some-fault" / "patch.toml").read_text()


@pytest.mark.parametrize("folder", ["patches", "tests/patches"])
def test_an_id_that_exists_is_refused_in_one_line(
    root: Path, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / folder / ID).mkdir(parents=True)
    before = sorted(root.rglob("*"))

    assert new_patch.main([ID], root) == 1
    assert capsys.readouterr().err == f"{folder}/{ID} exists already\n"
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("entry", ["12345", "Slug-Case", "a_b", "../up-there", "a--b", "a-b-", ""])
def test_a_malformed_id_is_refused_in_one_line(
    root: Path, entry: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(root.rglob("*"))

    assert new_patch.main([entry], root) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"{entry!r} is no id: ")
    assert error.count("\n") == 1
    assert sorted(root.rglob("*")) == before
