"""The one cache of published releases; pip is stood in for."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import wheels


FILES = (
    "sglang/__init__.py",
    "sglang/srt/a.py",
    "sglang/srt/deep/b.py",
    "sglang-1.dist-info/RECORD",
)


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """The Pythons that wheels were downloaded for, in a cache of its own."""
    asked: list[Sequence[str]] = []

    def download(wanted: str, folder: Path, pythons: Sequence[str]) -> Path:
        assert wanted == "sglang==1"
        asked.append(pythons)
        with zipfile.ZipFile(folder / "a.whl", "w") as wheel:
            for name in FILES:
                wheel.writestr(name, f"for {pythons[0]}")
        return folder / "a.whl"

    monkeypatch.setattr(wheels, "download", download)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return asked


def kept(folder: Path) -> set[str]:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return found - {".complete.json"}


def test_what_is_asked_for_is_kept_and_downloaded_once(downloads: list[Sequence[str]]) -> None:
    for _ in range(2):
        assert kept(wheels.fetch("1", ["sglang/srt/a.py"])) == {"sglang/srt/a.py"}

    assert len(downloads) == 1


def test_a_slash_stands_for_all_that_is_below(downloads: list[Sequence[str]]) -> None:
    assert kept(wheels.fetch("1", ["sglang/"])) == {*FILES} - {"sglang-1.dist-info/RECORD"}


def test_what_is_below_a_folder_that_is_kept_is_not_downloaded_again(
    downloads: list[Sequence[str]],
) -> None:
    wheels.fetch("1", ["sglang/srt/"])
    wheels.fetch("1", ["sglang/srt/a.py", "sglang/srt/none.py", "sglang/srt/deep/"])
    assert len(downloads) == 1

    wheels.fetch("1", ["sglang/__init__.py"])
    assert len(downloads) == 2


def test_the_source_is_that_of_whichever_wheel_was_taken(downloads: list[Sequence[str]]) -> None:
    wheels.fetch("1", ["sglang/"], python="3.12")
    wheels.fetch("1", ["sglang/srt/a.py"])

    assert len(downloads) == 1


def test_a_file_that_a_release_has_not_is_asked_for_once(downloads: list[Sequence[str]]) -> None:
    for _ in range(2):
        wheels.fetch("1", ["sglang/srt/none.py"])

    assert len(downloads) == 1


def test_who_runs_it_gets_what_was_built_for_that_python(downloads: list[Sequence[str]]) -> None:
    wheels.fetch("1", ["sglang/"])
    folder = wheels.fetch("1", ["sglang/"], python="3.12")

    assert downloads == [wheels.PYTHONS, ("3.12",)]
    assert (folder / "sglang/srt/a.py").read_text() == "for 3.12"


def test_what_pip_says_is_told_where_there_is_no_such_wheel(tmp_path: Path) -> None:
    with pytest.raises(wheels.DownloadError, match="no-such-distribution-commfix==1 cannot be"):
        wheels.download("no-such-distribution-commfix==1", tmp_path, ["3.11"])
