"""The census: every commit's decision, against the truth by ancestry."""

from __future__ import annotations

import subprocess
from pathlib import Path

import census
import pytest
from fake import FAULTY, FILE, FIXED, dedented, write_sglang

from sglang_commfix.engine.register import Register


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

    def commit(self, text: str) -> str:
        write_sglang(self.folder / "python", {FILE: text}, "unknown")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "a commit")
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "clone")


@pytest.fixture
def counted(register: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> census.Census:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(census, "HISTORIES", tmp_path / "histories")
    return census.Census(register)


def draw_up(tmp_path: Path, brought: list[str], mended: list[str]) -> None:
    file = tmp_path / "histories" / "1-guard" / "history.toml"
    file.parent.mkdir(parents=True)
    file.write_text(f"brought = {brought}\nmended = {mended}\n")


SOUND = FAULTY.replace("should_fuse", "something_else")
ODD = FAULTY.replace("> 0", "> 1")


def test_each_commit_and_each_branch_tip_counts_and_what_is_wrong_is_named(
    repository: Repository, counted: census.Census, tmp_path: Path
) -> None:
    repository.commit(SOUND)
    brought = repository.commit(FAULTY)
    repository.commit(FAULTY + "\n# more\n")
    repository.commit(ODD)
    repository.git("branch", "vendor")
    mended = repository.commit(FIXED)
    lost = repository.commit(FAULTY)  # after the fix: by ancestry it is mended
    draw_up(tmp_path, [brought], [mended])
    text = census.survey(census.Clone(repository.folder), counted, "")
    assert text.startswith("6 commits, 2 branch tips, 5 distinct states\n")
    commits, tips = text.split("branch tips\n")
    assert "| 1-guard | 2 | 1 | 2 | 0 | 1 |" in commits
    assert "| 1-guard | 0 | 1 | 0 | 0 | 1 |" in tips
    assert f"1-guard: WRONG at {lost}" in text
    assert "1-guard: refused 1 times: sglang.srt.layers.communicator:Layer" in text


def test_without_a_history_the_decisions_are_counted_alone(
    repository: Repository, counted: census.Census
) -> None:
    repository.commit(FAULTY)
    text = census.survey(census.Clone(repository.folder), counted, "")
    assert "| 1-guard | not known: apply 1 |" in text
    assert "WRONG" not in text


def test_a_run_goes_on_where_the_last_one_stopped(
    repository: Repository, register: Register, counted: census.Census,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    repository.commit(FAULTY)
    clone = census.Clone(repository.folder)
    first = census.survey(clone, counted, "")
    monkeypatch.setattr(census, "decide", None)
    assert census.survey(clone, census.Census(register), "") == first


def test_a_fault_may_come_back(repository: Repository, tmp_path: Path) -> None:
    commits = [repository.commit(dedented(FAULTY) + f"# {number}\n") for number in range(6)]
    history = {"brought": [commits[1], commits[4]], "mended": [commits[3], commits[5]]}
    assert census.faulty(census.Clone(repository.folder), history) == {
        commits[1],
        commits[2],
        commits[4],
    }
