"""An entry of the register is two folders: `patches/<id>/`, and one of the same name here."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from rig.entries import FOLDER

from sglang_commfix.engine.register import load


IDS = {patch.id for patch in load().patches}


def names_of_tests(file: Path) -> list[str]:
    return [
        node.name
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


@pytest.mark.parametrize("entry", sorted(IDS))
def test_every_entry_has_a_test_of_its_own(entry: str) -> None:
    assert any(names_of_tests(file) for file in (FOLDER / entry).glob("test_*.py"))


def test_every_folder_is_that_of_an_entry() -> None:
    folders = {file.parent.name for file in FOLDER.glob("*/*.py")}

    assert folders == IDS


def test_what_an_entry_says_stands_in_files_that_are_looked_for() -> None:
    """A file of another name would be passed over without a word."""
    read = {"decisions.py", "layers.py", "matrix.py"}
    for entry in FOLDER.glob("*/"):
        # A program that a person runs stands in the evidence.
        told = [*entry.glob("test_*.py"), *entry.glob("evidence.md")]
        tests = "\n".join(file.read_text() for file in told)
        others = [file.name for file in entry.glob("*.py") if not file.name.startswith("test_")]
        assert all(name in read or name in tests for name in others), entry
