"""The locks that ship: text by lock and text by engine are the same, byte for byte."""

from __future__ import annotations

import itertools
import random
from functools import cache
from pathlib import Path

import pytest
from rig.sources.published import (
    RELEASES,
    built_locks,
    copied,
    findings,
    lock_of,
    released,
    tree,
    with_files,
)

from sglang_commfix.command import write_lock
from sglang_commfix.command.report import status
from sglang_commfix.engine import guard, shipped
from sglang_commfix.engine.make_lock import make_lock
from sglang_commfix.engine.register import Patch, load
from sglang_commfix.engine.rewrite import placed, rewrite
from sglang_commfix.engine.tree import Tree
from sglang_commfix.files import KEY, Sglang
from sglang_commfix.run import plan
from sglang_commfix.run.host import Settings


# That every Python finds the same forms and splices, `tools/locks.py --check` shows there.
pytestmark = [pytest.mark.releases, pytest.mark.one_python]

COMMUNICATOR = "sglang.srt.layers.communicator"
ENTRIES = load().patches
IDS = [patch.id for patch in ENTRIES]


@pytest.fixture(autouse=True)
def built(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server that has the shipped locks, and may not ask the engine; the folder above them."""

    def refuse() -> object:
        raise AssertionError("the engine was asked")

    monkeypatch.setattr(plan, "SHIPPED", built_locks())
    monkeypatch.setattr(plan, "engine", refuse)
    return built_locks().parent


@cache
def by_engine(release: str, module: str, patches: tuple[str, ...]) -> bytes:
    """Make the edits of several patches at once, in the tree and in the text of one module."""
    source, syntax = tree(release).source(module), tree(release).tree(module)
    assert source is not None
    assert syntax is not None
    edits = [(name, edit) for name in patches for edit in findings(release)[name].edits]
    changes = [placed(syntax, name, e) for name, e in edits if e.target.module == module]
    return rewrite(source, syntax, changes, compiled=False).raw


def selections(release: str) -> list[str]:
    """Each entry alone, every set of those that edit one module, all, and 100 drawn by chance."""
    chance = random.Random(24785)
    editing: dict[str, list[str]] = {}
    for name, finding in findings(release).items():
        for module in dict.fromkeys(edit.target.module for edit in finding.edits):
            editing.setdefault(module, []).append(name)
    together = [
        ",".join(names)
        for beside in editing.values()
        for count in range(2, len(beside) + 1)
        for names in itertools.combinations(beside, count)
    ]
    drawn = []
    for _ in range(100):
        words = chance.sample(IDS, chance.randint(1, len(IDS)))
        words += [f"-{name}" for name in chance.sample(IDS, chance.randint(0, 2))]
        words += chance.sample(["1", "all"], chance.randint(0, 1))
        drawn.append(",".join(chance.sample(words, len(words))))
    return [*IDS, *together, "1", "all", *drawn]


@pytest.mark.parametrize("release", RELEASES)
def test_text_by_lock_and_text_by_engine_are_the_same_whatever_is_selected(release: str) -> None:
    sglang = Sglang(released(release) / "sglang")
    affected = {patch.id for patch in ENTRIES if release in patch.affected_releases}
    for words in selections(release):
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
    files = [*(built / "locks").iterdir(), *built.glob("patches/*/locks.json.gz")]
    assert len(files) > len(IDS)
    assert sum(file.stat().st_size for file in files) <= 600_000
    assert max(file.stat().st_size for file in (built / "locks").iterdir()) <= 60_000


def test_a_process_reads_one_file_of_locks(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(plan, "damage", lambda: None)  # which reads all that is installed
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read.append(self) or original(self))
    plan.make_plan(Sglang(released("0.5.11") / "sglang"), Settings("all"))
    assert len([file for file in read if file.is_relative_to(built)]) == 1


def test_the_version_string_plays_no_part(tmp_path: Path) -> None:
    copy = copied("0.5.7", tmp_path / "site")
    for name in ("version.py", "_version.py"):
        (copy / "sglang" / name).write_text('__version__ = "0.0.0.dev1+g0123456"\n')
    here = plan.make_plan(Sglang(copy / "sglang"), Settings("all"))
    there = plan.make_plan(Sglang(released("0.5.7") / "sglang"), Settings("all"))
    assert here.patches == there.patches
    assert {name: m.after for name, m in here.modules.items()} == {
        name: m.after for name, m in there.modules.items()
    }


@pytest.mark.parametrize("release", ["0.5.1", "0.5.10.post1", "0.5.11", "0.5.12.post1", "0.5.23"])
def test_an_own_lock_of_a_release_plans_what_the_shipped_one_does(
    release: str, tmp_path: Path
) -> None:
    sglang, file = Sglang(released(release) / "sglang"), tmp_path / "lock.json"
    write_lock.write(write_lock.make(sglang, ()), file)
    shipped_plan = plan.make_plan(sglang, Settings("all"))
    own_plan = plan.make_plan(sglang, Settings("all", lock=str(file)))
    assert own_plan.origin == str(file)
    assert own_plan.patches == shipped_plan.patches
    assert own_plan.modules == shipped_plan.modules
    assert not list(write_lock.differences(file, sglang))


class TestTreesThatNoReleaseHas:
    """A decision stands on its own entry's files; only the rest is the engine's."""

    def tree(self, release: str, folder: Path, *changed: str) -> Sglang:
        sglang = Sglang(copied(release, folder) / "sglang")
        for module in changed:
            with sglang.file_of(module).open("a") as file:
                file.write("# a vendor's remark\n")
        return sglang

    @pytest.mark.parametrize("changed", [KEY, COMMUNICATOR, "sglang.srt.models.qwen3_moe"])
    def test_the_guard_is_asked_about_entries_whose_files_differ_and_no_others(
        self, changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[str] = []

        def decide(tree: Tree, patch: Patch, allowed: bool) -> guard.Finding:
            asked.append(patch.id)
            return original(tree, patch, allowed)

        original = guard._decide
        monkeypatch.setattr(guard, "_decide", decide)
        shipped.lock_now(self.tree("0.5.11", tmp_path / "site", changed))
        assert asked == [patch.id for patch in ENTRIES if changed in patch.modules]
        assert 0 < len(asked) < len(IDS)

    @pytest.mark.parametrize(
        ("release", "first"), [("0.5.6", 0), ("0.5.10.post1", 1), ("0.5.20", 2)]
    )
    def test_the_answers_are_those_of_the_engine_alone(
        self, release: str, first: int, tmp_path: Path
    ) -> None:
        """Each release with a third of the files changed, one at a time."""
        modules = sorted({module for patch in ENTRIES for module in patch.modules})[first::3]
        for number, module in enumerate(modules):
            if not tree(release).sglang.file_of(module).is_file():
                continue
            sglang = self.tree(release, tmp_path / str(number), module)
            raw = sglang.file_of(module).read_bytes()
            alone = make_lock(load(), with_files(tree(release), {module: raw}))
            assert shipped.lock_now(sglang) == alone

    def test_a_server_asks_the_engine_for_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(plan, "engine", lambda: shipped)
        sglang = self.tree("0.5.11", tmp_path / "site", KEY)
        made = plan.make_plan(sglang, Settings("all"))
        assert made.origin == "engine"
        release = plan.make_plan(Sglang(released("0.5.11") / "sglang"), Settings("all"))
        assert [p["decision"] for p in made.patches] == [p["decision"] for p in release.patches]

    def test_status_says_which_release_it_is_like_and_how_much_of_the_difference_matters(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(plan, "engine", lambda: shipped)
        sglang = self.tree("0.5.12.post1", tmp_path / "site", "sglang.srt.server_args")
        file = sglang.file_of(KEY)
        text = file.read_text()
        file.write_text(text.replace("CaptureHiddenMode.FULL", "CaptureHiddenMode.NULL"))
        assert file.read_text() != text
        like = status(tmp_path / "site").like
        assert like is not None
        assert set(like.differing) == {KEY, "sglang.srt.server_args"}
        assert like.mattering == ()
        file.write_text(text.replace("batch_size * num_tokens_per_bs", "num_tokens_per_bs"))
        like = status(tmp_path / "site").like
        assert like is not None
        assert like.release == "0.5.12.post1"
        assert set(like.differing) == {KEY, "sglang.srt.server_args"}
        assert like.mattering == (KEY,)
        assert status(released("0.5.12.post1")).like is None

    @pytest.mark.parametrize("gone", [COMMUNICATOR, KEY])
    def test_a_file_that_is_missing_from_a_release_is_not_taken_for_one_that_has_none(
        self, gone: str, tmp_path: Path
    ) -> None:
        sglang = self.tree("0.5.11", tmp_path / "site")
        sglang.file_of(gone).unlink()
        decisions = {d["id"]: d["decision"] for d in shipped.lock_now(sglang)["decisions"]}
        needed = {p.id for p in ENTRIES if "0.5.11" in p.affected_releases and gone in p.modules}
        assert needed
        assert {decisions[name] for name in needed} == {"refused"}
