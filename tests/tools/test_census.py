"""The census: every commit's decision, against the truth by ancestry."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import census
import pytest
from rig.stand_in import FAULTY, FILE, FIXED, Upstream, dedented, edit, patch, write_sglang


class Repository:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.git("init", "--quiet", "--initial-branch", "main", str(folder))
        self.git("config", "user.email", "nobody@example.org")
        self.git("config", "user.name", "nobody")

    def git(self, *arguments: str) -> str:
        self.folder.mkdir(exist_ok=True)
        command = ["git", "-C", str(self.folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, text: str, other: str = "", version: str = "unknown") -> str:
        write_sglang(self.folder / "python", {FILE: text, OTHER_FILE: other}, version)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "a commit")
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "clone")


@pytest.fixture
def patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a register with two entries, which have nothing to do with each other."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(census, "HISTORIES", tmp_path / "histories")
    write_register(tmp_path / "patches")
    return tmp_path / "patches"


def write_register(folder: Path, **changes: Any) -> None:
    """Write the register; ``changes`` are made in the second entry."""
    releases = Upstream().releases
    for files in releases.values():
        files[OTHER] = dedented(FAULTY)
    other = patch("2-other", edit=[edit(module=OTHER)], sound=[], **changes)
    Upstream(releases).register(folder, patch(), other)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the guard was asked about each entry."""
    counted: Counter[str] = Counter()
    decide = census.decide

    def counting(register: Any, tree: Any, known: Any) -> Any:
        counted.update({one.id for one in register.patches} - known)
        return decide(register, tree, known=known)

    monkeypatch.setattr(census, "decide", counting)
    return counted


def draw_up(tmp_path: Path, brought: list[str], mended: list[str]) -> None:
    file = tmp_path / "histories" / "1-guard" / "history.toml"
    file.parent.mkdir(parents=True)
    file.write_text(f"brought = {brought}\nmended = {mended}\n")


OTHER = "sglang.srt.layers.other"
OTHER_FILE = "srt/layers/other.py"
SOUND = FAULTY.replace("should_fuse", "something_else")
# Another way out, in front of what is edited.
ODD = FAULTY.replace("size = batch", "if not batch:\n            return True\n        size = batch")


def test_each_commit_branch_tip_and_distinct_state_counts_and_what_is_wrong_is_named(
    repository: Repository, patches: Path, tmp_path: Path
) -> None:
    repository.commit(SOUND)
    brought = repository.commit(FAULTY)
    repository.commit(FAULTY + "\n# more\n")
    repository.commit(FAULTY)
    repository.commit(ODD)
    repository.git("branch", "vendor")
    mended = repository.commit(FIXED)
    lost = repository.commit(FAULTY)  # after the fix: by ancestry it is mended
    draw_up(tmp_path, [brought], [mended])

    text = census.survey(census.Clone(repository.folder), census.Census(patches))

    assert text.startswith("7 commits, 2 branch tips, 5 distinct states\n")
    commits, _, rest = text.partition("distinct states of")
    states, _, tips = rest.partition("branch tips\n")
    assert "| 1-guard | 3 | 1 | 2 | 0 | 1 | 14.3% |" in commits
    assert "| 1-guard | 2 | 1 | 2 | 0 | 1 | 16.7% |" in states
    assert "| 1-guard | 0 | 1 | 0 | 0 | 1 | 50.0% |" in tips
    assert "| 1 of 7, 14.3% | " in tips
    assert f"1-guard: WRONG at {lost}" in text


def test_each_reason_for_a_refusal_is_told_with_a_commit(
    repository: Repository, patches: Path
) -> None:
    repository.commit(ODD)
    repository.commit(FAULTY)
    newest = repository.commit("\n" + ODD)

    text = census.survey(census.Clone(repository.folder), census.Census(patches, ["1-guard"]))

    told = [line for line in text.splitlines() if "refused" in line and "times" in line]
    assert len(told) == 1
    assert told[0].startswith(f"1-guard: refused 2 times, as at {newest}: ")


def test_without_a_history_the_decisions_are_counted_alone(
    repository: Repository, patches: Path
) -> None:
    repository.commit(FAULTY)

    text = census.survey(census.Clone(repository.folder), census.Census(patches))

    assert "| 1-guard | not known: apply 1 |" in text
    assert "WRONG" not in text


def test_an_entry_is_decided_about_once_for_each_state_of_its_own_files(
    repository: Repository, patches: Path, asked: Counter[str]
) -> None:
    repository.commit(FAULTY, "x = 1")
    repository.commit(FAULTY, "x = 2")
    repository.commit(FAULTY, "x = 3")
    repository.commit(FIXED, "x = 3")
    repository.commit(FIXED, "x = 3", "1.3")  # the version is told in reasons

    census.survey(census.Clone(repository.folder), census.Census(patches))

    assert asked == {"1-guard": 3, "2-other": 4}


def test_a_run_goes_on_where_the_last_one_stopped(
    repository: Repository, patches: Path, asked: Counter[str]
) -> None:
    repository.commit(FAULTY)
    clone = census.Clone(repository.folder)
    first = census.survey(clone, census.Census(patches))
    asked.clear()

    assert census.survey(clone, census.Census(patches)) == first
    assert not asked


def test_an_entry_that_was_edited_is_alone_decided_about_anew(
    repository: Repository, patches: Path, asked: Counter[str]
) -> None:
    repository.commit(FAULTY)
    clone = census.Clone(repository.folder)
    census.survey(clone, census.Census(patches))
    asked.clear()

    write_register(patches, title="another")
    (patches / "1-guard" / "locks.json").write_text("{}")  # made from it, and not read
    census.survey(clone, census.Census(patches))

    assert asked == {"2-other": 1}


def test_one_entry_can_be_surveyed(
    repository: Repository, patches: Path, asked: Counter[str]
) -> None:
    repository.commit(FAULTY)
    repository.commit(FAULTY, "x = 1")

    text = census.survey(census.Clone(repository.folder), census.Census(patches, ["1-guard"]))

    assert text.startswith("2 commits, 1 branch tips, 1 distinct states\n")
    assert "2-other" not in text
    assert asked == {"1-guard": 1}


def test_several_processes_find_the_same(
    repository: Repository, patches: Path, tmp_path: Path
) -> None:
    for text in (FAULTY, ODD, SOUND, FIXED):
        repository.commit(text, text)
    clone = census.Clone(repository.folder)
    alone = census.survey(clone, census.Census(patches))
    shutil.rmtree(tmp_path / "cache")

    assert census.survey(clone, census.Census(patches), jobs=2) == alone


def test_what_was_parsed_is_shared_and_bounded() -> None:
    parsed = census.Parsed(2)
    first, second = parsed.of("a", "1"), parsed.of("a", "2")
    first["tree"] = second["tree"] = object()

    assert parsed.of("a", "1") is first
    assert parsed.of("b", "1") == {}
    assert parsed.of("a", "1") is first
    assert parsed.of("a", "2") == {}


def test_a_fault_may_come_back(repository: Repository) -> None:
    commits = [repository.commit(dedented(FAULTY) + f"# {number}\n") for number in range(6)]
    history = {"brought": [commits[1], commits[4]], "mended": [commits[3], commits[5]]}
    assert census.faulty(census.Clone(repository.folder), history) == {
        commits[1],
        commits[2],
        commits[4],
    }
