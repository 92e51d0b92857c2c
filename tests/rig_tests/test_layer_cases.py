"""What the rig's layer runs are told and what they tell, without running any."""

from __future__ import annotations

import json

import pytest
from rig.layers.case import Case, LayerTrace, Layout, Outcome, RankReport


class TestOutcome:
    def test_it_is_as_wrong_as_its_worst_rank(self) -> None:
        ranks = (RankReport(relative_error=1e-6), RankReport(relative_error=2.0))

        assert Outcome(ranks).relative_error == 2.0

    def test_it_is_wrong_if_a_rank_did_not_come_to_an_end(self) -> None:
        ranks = (RankReport(relative_error=1e-6), RankReport(error="Traceback"))

        assert Outcome(ranks).relative_error == float("inf")
        assert Outcome(ranks).errors == ["Traceback"]

    def test_what_was_captured_on_the_way_counts_too(self) -> None:
        ranks = (RankReport(relative_error=1e-6, captured=(2e-6, 0.5)), RankReport(None, 1e-6))

        assert Outcome(ranks).relative_error == 1e-6
        assert Outcome(ranks).captured_error == Outcome(ranks).error == 0.5

    def test_nothing_captured_is_no_capture_that_is_right(self) -> None:
        assert Outcome((RankReport(relative_error=1e-6),)).captured_error == float("inf")

    def test_layers_of_all_stages_are_in_it_once_and_in_order(self) -> None:
        calls = {"prepare_attn": ["fused_all_reduce 2_3"], "prepare_mlp": ["all_reduce tp"]}
        first, second = (
            RankReport(None, 0.0, layers=(LayerTrace("FULL", "FULL", {}, {}, steps, number),))
            for number, steps in enumerate(({}, calls))
        )
        outcome = Outcome((second, second, first, first))

        assert [layer.number for layer in outcome.layers] == [0, 1]
        assert outcome.collectives == [{}, calls]
        assert outcome.fused_calls == [0, 1]

    def test_a_report_survives_its_way_between_the_processes(self) -> None:
        layer = LayerTrace("FULL", "FULL", {"a": "b"}, {"c": True}, {"d": ["e f"]})
        report = RankReport(None, 0.5, (2, 3), "SUM_LEN", (layer,), (1e-6,))

        assert RankReport.from_json(json.loads(json.dumps(report.to_json()))) == report

    def test_a_case_survives_it_too(self) -> None:
        layout = Layout(tp=4, dp=2, moe_dense_tp=1, pp=2)
        case = Case(layout, (3, 0), layers="DDS", padding="MAX_LEN", fusion=True, capture=(0, 1))

        assert Case.from_json(json.loads(json.dumps(case.to_json()))) == case

    def test_a_case_has_a_number_of_tokens_for_every_group(self) -> None:
        with pytest.raises(ValueError, match="tp4-dp2 has 2 attention groups"):
            Case(Layout(tp=4, dp=2), (3,))
