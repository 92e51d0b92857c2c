"""The prose of pages at one width."""

from __future__ import annotations

import re

import pytest
from generated import wrapped
from hypothesis import example, given
from hypothesis import strategies as st


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


WORDS = st.sampled_from(
    ["a", "bcd", "`e f`", "``g ` h``", "[i j](k)", "\n", "\n\n", "- ", "1. ", "|"]
)


@given(st.lists(WORDS, max_size=80).map(" ".join))
@example(FENCED)
def test_words_stay_and_filling_again_changes_nothing(text: str) -> None:
    once = wrapped(text)
    assert re.sub(r"\s+", " ", once).strip() == re.sub(r"\s+", " ", text).strip()
    assert wrapped(once) == once
