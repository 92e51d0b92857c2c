"""The prose of pages at one width; and what tools say of an entry that they cannot use."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
from generated import read_register, wrapped
from hypothesis import example, given
from hypothesis import strategies as st
from locks import refuse_doubt

from sglang_commfix.engine.register import patches_folder


LONG = " ".join(["word"] * 30)
FENCED = f"```text\n{LONG}\n\n- {LONG}\n```"


def test_a_paragraph_is_filled() -> None:
    lines = wrapped(LONG.replace(" ", "\n", 5)).splitlines()
    assert [len(line) <= 100 for line in lines] == [True, True]
    assert len(lines[0]) > 94


@pytest.mark.parametrize(
    "text",
    [
        f"# {LONG}",
        f"| {LONG} |\n| --- |",
        FENCED,
        f"<!-- {LONG} -->",
        f"`{LONG}`",
        f"[link](target-that-is-as-long-as-this-{'one' * 40})",
    ],
)
def test_what_cannot_break_is_left(text: str) -> None:
    assert wrapped(f"\n{text}\n") == f"\n{text}\n"


def test_items_hang() -> None:
    assert wrapped(f"These:\n- a\n  b\n- {LONG}\n  1. c") == (
        f"These:\n- a b\n- {' '.join(['word'] * 19)}\n  {' '.join(['word'] * 11)}\n  1. c"
    )


WORDS = st.sampled_from(["a", "bcd", "`e f`", "``g ` h``", "[i j](k)", "\nl", "\n- m", "\n1. n"])
PARAGRAPHS = st.lists(WORDS, min_size=1, max_size=40).map(lambda words: " ".join(words).strip())


@given(st.lists(PARAGRAPHS, min_size=1, max_size=4).map("\n\n".join))
@example(FENCED)
def test_words_stay_and_filling_again_changes_nothing(text: str) -> None:
    once = wrapped(text)
    assert re.sub(r"\s+", " ", once) == re.sub(r"\s+", " ", text)
    assert wrapped(once) == once


def test_what_is_wrong_with_an_entry_is_said_in_one_line(tmp_path: Path) -> None:
    shutil.copytree(patches_folder(), tmp_path, dirs_exist_ok=True)
    (file,) = tmp_path.glob("24785-*/patch.toml")
    file.write_text("pr = 1\n")

    with pytest.raises(SystemExit, match=f"^{re.escape(str(file))}: 'id' is missing$"):
        read_register(tmp_path)


def test_a_refusal_in_a_release_ends_the_run_and_says_what_an_entry_needs() -> None:
    refused = {"id": "1-a", "decision": "refused", "reason": "neither is known"}

    with pytest.raises(SystemExit) as end:
        refuse_doubt(cast("Any", {"0.5.2": {"decisions": [refused]}}))
    first, last = str(end.value).splitlines()
    assert first == "0.5.2: 1-a is refused: neither is known"
    assert "a [[sound]] clause" in last
