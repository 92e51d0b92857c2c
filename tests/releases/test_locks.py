"""The locks that ship: text by lock and text by engine are the same, byte for byte."""

from __future__ import annotations

import itertools
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from published import RELEASES, findings, lock_of, released, tree

from sglang_commfix.engine import shipped
from sglang_commfix.engine.register import load, patches_folder
from sglang_commfix.engine.rewrite import locate, rewrite
from sglang_commfix.files import Sglang
from sglang_commfix.run import plan
from sglang_commfix.run.host import Settings


pytestmark = pytest.mark.releases

ENTRIES = load().patches
IDS = [patch.id for patch in ENTRIES]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel has in ``sglang_commfix/``: the locks, put together."""
    root = tmp_path_factory.mktemp("built")
    for name, data in shipped.put_together(load(), patches_folder()).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.fixture(autouse=True)
def built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server that has the shipped locks, and may not ask the engine."""

    def refuse() -> Any:
        raise AssertionError("the engine was asked")

    monkeypatch.setattr(plan, "SHIPPED", folder / "locks")
    monkeypatch.setattr(plan, "engine", refuse)
    return folder


@cache
def by_engine(release: str, module: str, patches: tuple[str, ...]) -> bytes:
    """Make the edits of several patches at once, in the tree and in the text of one module."""
    source, syntax = tree(release).source(module), tree(release).tree(module)
    assert source is not None
    assert syntax is not None
    edits = [(name, edit) for name in patches for edit in findings(release)[name].edits]
    changes = [locate(syntax, name, e) for name, e in edits if e.target.module == module]
    return rewrite(source, syntax, changes, compiled=False).raw


def selections() -> list[str]:
    """Each entry alone, every pair, all, and 500 drawn by chance, some of them with exceptions."""
    chance = random.Random(24785)
    pairs = [",".join(pair) for pair in itertools.combinations(IDS, 2)]
    drawn = []
    for _ in range(500):
        words = chance.sample(IDS, chance.randint(1, len(IDS)))
        words += [f"-{name}" for name in chance.sample(IDS, chance.randint(0, 2))]
        words += chance.sample(["1", "all"], chance.randint(0, 1))
        drawn.append(",".join(chance.sample(words, len(words))))
    return [*IDS, *pairs, "1", "all", *drawn]


@pytest.mark.parametrize("release", RELEASES)
def test_text_by_lock_and_text_by_engine_are_the_same_whatever_is_selected(release: str) -> None:
    sglang = Sglang(released(release) / "sglang")
    affected = {patch.id for patch in ENTRIES if release in patch.affected_releases}
    for words in selections():
        made = plan.make_plan(sglang, Settings(words))
        assert made.origin == "shipped"
        selected, _ = plan.parse_selection(words, made.patches)
        missing = {p.id for p in ENTRIES if {*p.requires} & affected - selected}
        applied = [name for name in IDS if name in (selected & affected) - missing]
        assert [patch["id"] for patch in made.having("apply")] == applied
        modules = {e.target.module for name in applied for e in findings(release)[name].edits}
        assert made.modules.keys() == modules
        for name, module in made.modules.items():
            own = [
                p for p in applied if name in {e.target.module for e in findings(release)[p].edits}
            ]
            assert module.patches == tuple(own)
            assert module.after == by_engine(release, name, tuple(own))


@pytest.mark.parametrize("release", RELEASES)
def test_a_shipped_lock_decides_as_the_engine_does_and_gives_the_same_reasons(release: str) -> None:
    made = plan.make_plan(Sglang(released(release) / "sglang"), Settings("all"))
    assert made.lock["decisions"] == lock_of(release)["decisions"]
    assert made.lock["conflicts"] == lock_of(release)["conflicts"]


def test_the_locks_fit_in_the_wheel_and_in_a_process(built: Path) -> None:
    files = [file for file in built.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 300_000
    assert max(file.stat().st_size for file in (built / "locks").iterdir()) <= 30_000


def test_a_process_reads_one_file_of_locks(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read.append(self) or original(self))
    plan.make_plan(Sglang(released("0.5.11") / "sglang"), Settings("all"))
    assert len([file for file in read if file.is_relative_to(built)]) == 1


def test_the_version_string_plays_no_part(tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "site"
    shutil.copytree(released("0.5.7"), copy)
    for name in ("version.py", "_version.py"):
        (copy / "sglang" / name).write_text('__version__ = "0.0.0.dev1+g0123456"\n')
    here = plan.make_plan(Sglang(copy / "sglang"), Settings("all"))
    there = plan.make_plan(Sglang(released("0.5.7") / "sglang"), Settings("all"))
    assert here.patches == there.patches
    assert {name: m.after for name, m in here.modules.items()} == {
        name: m.after for name, m in there.modules.items()
    }
