"""The page of results, and what a run of the matrix is told, judged and shown by."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from generated import wrapped
from rig.expected import GPT_OSS, MODELS, RELEASES, Expected, Outcome, Result
from rig.matrix import CELLS, Cell
from rig.progress import Progress
from rig.results import not_shown, read, to_json
from rig.server import Completion
from rig.workload import compare
from server_table import PAGE, render


ROW_STARTS = tuple(f"| {model} |" for model in (*MODELS, GPT_OSS))


class TestPage:
    @pytest.fixture
    def content(self) -> dict[str, Any]:
        return read()

    def test_it_is_what_the_raw_results_render_to(self, content: dict[str, Any]) -> None:
        assert PAGE.read_text(encoding="utf-8") == wrapped(render(content))

    def test_it_shows_every_server_of_the_matrix_doing_what_is_expected(
        self, content: dict[str, Any]
    ) -> None:
        assert not_shown(content) == []
        assert len(content["cells"]) == len(CELLS)

    def test_it_has_a_row_for_every_result_and_counts_them(self, content: dict[str, Any]) -> None:
        text = render(content)

        rows = [line for line in text.splitlines() if line.startswith(ROW_STARTS)]
        assert len(rows) == len(content["cells"])
        assert f"{len(rows)} of the {len(CELLS)} servers of the matrix" in text

    def test_a_result_that_is_missing_is_noticed(self, content: dict[str, Any]) -> None:
        changed = copy.deepcopy(content)
        gone = changed["cells"].pop(3)

        (more,) = set(not_shown(changed)) - set(not_shown(content))
        assert more.startswith(f"{gone['release']} {gone['model']} {gone['layout']} ")

    def test_a_result_that_is_not_as_expected_is_noticed(self, content: dict[str, Any]) -> None:
        changed = copy.deepcopy(content)
        row = next(row for row in changed["cells"] if row["found"]["outcome"] == "right")
        row["found"]["outcome"] = "wrong"

        (found,) = set(not_shown(changed)) - set(not_shown(content))
        assert found.startswith(f"{row['release']} {row['model']} {row['layout']} ")

    def test_a_result_that_answered_another_expectation_is_noticed(
        self, content: dict[str, Any]
    ) -> None:
        changed = copy.deepcopy(content)
        changed["cells"][0]["expected"] = {"outcome": "dies", "message": ""}

        assert len(set(not_shown(changed)) - set(not_shown(content))) == 1


def test_results_come_in_the_order_of_the_matrix() -> None:
    first, second = CELLS[:2]
    result = Result(Outcome.RIGHT, 1.0, (), mean=1.23456e-7)

    rows = to_json({second: result, first: result})["cells"]

    assert [row["patches"] for row in rows] == [first.patches, second.patches]
    assert rows[0]["found"]["mean"] == 1.23e-7


class TestExpected:
    REJECTED = Expected(Outcome.REJECTED, "must be divisible")
    RESULT = Result(Outcome.REJECTED, 1.0, (), message="AssertionError: must be divisible by 2")

    @pytest.mark.parametrize(
        "changes",
        [
            {"message": "AssertionError: else"},
            {"message": None},
            {"outcome": Outcome.DIES},
            {"complaints": ("2 of 3 patches are REFUSED",)},
        ],
    )
    def test_the_outcome_the_message_and_complaints_count(self, changes: dict[str, Any]) -> None:
        assert self.REJECTED.is_met_by(self.RESULT)
        assert not self.REJECTED.is_met_by(replace(self.RESULT, **changes))

    def test_each_release_and_model_has_its_layouts_with_all_patches(self) -> None:
        shown = {(cell.release, cell.model) for cell in CELLS if cell.patches == "all"}

        of_all = {(release, model) for release in RELEASES for model in MODELS}
        assert shown == of_all | {(RELEASES[-1], GPT_OSS)}

    def test_what_is_to_fail_with_all_patches_is_shown_without_them_too(self) -> None:
        def key(cell: Cell) -> tuple[str, str, str]:
            return cell.release, cell.model, cell.layout.name

        failing = {key(c) for c in CELLS if c.patches and c.expected.outcome is not Outcome.RIGHT}

        assert failing
        assert failing <= {key(c) for c in CELLS if c.patches is None}


class TestProgress:
    def lines(self, *, live: bool) -> list[str]:
        # Read when it is made, and by each of begin, end, and (on a terminal) wait.
        times = iter([0.0, 0.0, 20.0, 30.0, 30.0, 90.0] if live else [0.0, 0.0, 30.0, 30.0, 90.0])
        written: list[str] = []
        progress = Progress(3, 12.0, written.append, live=live, clock=lambda: next(times))
        progress.begin("one")
        progress.wait()
        progress.end("right", effort=3.0)
        progress.begin("two")
        progress.end("WRONG", effort=6.0)
        return "".join(written).split("\n")

    def test_elsewhere_than_on_a_terminal_each_part_is_a_plain_line(self) -> None:
        assert self.lines(live=False) == [
            "",
            "[1/3] one: right (30 s; 0:30 gone, about 1:30 left)",
            "",
            "[2/3] two: WRONG (60 s; 1:30 gone, about 0:30 left)",
            "",
        ]

    def test_on_a_terminal_a_line_counts_the_seconds_and_is_written_over(self) -> None:
        _, first, *_ = self.lines(live=True)

        assert first.split("\r\x1b[K") == [
            "",
            "[1/3] one ... 20 s",
            "[1/3] one: right (30 s; 0:30 gone, about 1:30 left)",
        ]


class TestComparison:
    REFERENCE = (Completion((1, 2, 3), (-1.0,), (-0.5, -0.25, -4.0)),)

    def test_generated_tokens_are_compared_up_to_the_first_other_one(self) -> None:
        other = (Completion((1, 2, 9), (-1.0,), (-0.5, -0.75, -1.0)),)

        assert compare(other, self.REFERENCE).generated_max == 0.5

    def test_the_same_tokens_with_other_probabilities_are_no_noise(self) -> None:
        other = (Completion((1, 2, 3), (-1.0,), (-0.5, -0.25, -3.9)),)

        difference = compare(other, self.REFERENCE)

        assert (difference.same_tokens, difference.max) == (1, 0.0)
        assert not difference.is_noise
