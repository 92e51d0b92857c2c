"""That the tool which runs mutants finds what is wrong, and says it in few words."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from functools import cache

import pytest
from rig.sources import fuzz, mutations
from rig.sources.fuzz import KEPT, LOST, Case, Ground, Mutation

from sglang_commfix.engine.effect import Names
from sglang_commfix.engine.register import Target, load
from sglang_commfix.files import splice


pytestmark = [pytest.mark.releases, pytest.mark.one_python]

PATCH = "24785-sum-len-contract"
TARGET = Target("sglang.srt.layers.communicator", "LayerCommunicator.should_use_reduce_scatter")
COMMENTS = Mutation("local", mutations.comments_and_blank_lines, 1)
ABOVE = Mutation("neutral", fuzz.lines_above, 2)
ASSIGNED = Mutation("lost", LOST[0], 3)


@cache
def ground() -> Ground:
    return Ground(load()[PATCH], "0.5.11")


def case(*steps: Mutation) -> Case:
    return Case("1:8:0", ground(), TARGET, list(steps), [load()[PATCH]])


def test_what_the_engine_does_rightly_is_no_finding() -> None:
    assert case(COMMENTS, ABOVE).run([COMMENTS, ABOVE]) == "apply"
    assert case(ASSIGNED).run([ASSIGNED]) == "refused"
    wrapped = Mutation("kept", KEPT[0], 4)
    assert case(wrapped).run([wrapped]) == "apply"


def test_an_edit_without_effect_is_found_and_printed_as_small_as_it_gets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing(_self: Names, _scope: str) -> Iterator[tuple[int, str]]:
        return iter(())

    again = Mutation("lost", LOST[5], 5)
    assert fuzz.failure(case(ASSIGNED, again), [ASSIGNED, again]) == ""
    monkeypatch.setattr(Names, "bound_anew", nothing)
    said = str(case(ASSIGNED, again))
    assert f"--case 1:8:0: {PATCH} in 0.5.11, {TARGET}" in said
    assert said.count("  lost: ") == 1
    assert "the edit is without effect, but" in said


def test_a_neutral_change_that_is_refused_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(text: str, chance: random.Random) -> str:
        return text.replace("is_max_len()", "is_max_length()")

    step = Mutation("neutral", broken, 6)
    monkeypatch.setattr(Case, "_means_the_same", lambda _self, _tree: True)
    assert "the change has no meaning, but" in fuzz.failure(case(step), [step])


def test_a_line_that_no_edit_is_about_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def more(raw: bytes, splices: Iterable[object]) -> bytes:
        return splice(raw, splices).replace(b"# Copyright", b"#", 1)  # type: ignore[arg-type]

    monkeypatch.setattr(fuzz, "splice", more)
    said = fuzz.failure(case(COMMENTS), [COMMENTS])
    assert f"{PATCH}: lines 1 to 1 of {TARGET.module} changed" in said


def test_an_exception_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "make_lock", None)
    assert "TypeError" in fuzz.failure(case(COMMENTS), [COMMENTS])


def test_one_seed_makes_the_same_mutants() -> None:
    one, other = (list(fuzz.cases(1, 8, 3)) for _ in range(2))
    assert [str(step) for c in one for step in c.steps] == [
        str(step) for c in other for step in c.steps
    ]
    assert [c.text(c.steps) for c in one] == [c.text(c.steps) for c in other]


def test_how_far_it_is_stands_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz.time, "monotonic", lambda: 60.0)
    said = fuzz.bar(500, 1000, 0, 0.0)
    assert said == f"[{'#' * 15}{' ' * 15}] 500 of 1,000, 0 wrong, 8 a second, 1 min left"
