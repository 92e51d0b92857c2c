"""#19918: fusion with `--moe-dense-tp-size 1`, looked at from within the real scheduler processes."""

from __future__ import annotations

from typing import Any

import pytest
from rig.observer import TP_2_DENSE_TP_1, Observation, Observer, Setup


pytestmark = pytest.mark.servers


def in_full(release: str) -> Any:
    """Leave a release out of the default run."""
    return pytest.param(release, marks=pytest.mark.servers_full)


def scattered_mlp(observe: Observer, release: str, *, patched: bool) -> Observation:
    """By the same servers as the tests of 19918-dummy-run-alignment: they are started once."""
    return observe(
        Setup(
            release,
            TP_2_DENSE_TP_1,
            patches="1" if patched else None,
            probes=("fusion_decisions", "dummy_run"),
            max_running_requests=5,
        )
    )


def fusion_decisions(observation: Observation) -> dict[str, bool]:
    """By scatter mode of the MLP, for the layers that another layer follows; all ranks agree."""
    first, second = observation.reports["fusion_decisions"].values()
    assert first == second
    layers: list[dict[str, Any]] = first
    assert [layer["is_last"] for layer in layers] == [False, False, True]
    assert layers[-1]["fuses"] is False
    return {layer["mlp_mode"]: layer["fuses"] for layer in layers[:-1]}


class TestFusion:
    RELEASES = (in_full("0.5.10.post1"), "0.5.11", in_full("0.5.12.post1"))

    @pytest.mark.parametrize("release", RELEASES)
    def test_unpatched_the_scattered_dense_layer_hands_its_all_reduce_on(
        self, observe: Observer, release: str
    ) -> None:
        decisions = fusion_decisions(scattered_mlp(observe, release, patched=False))

        assert decisions == {"SCATTERED": True, "FULL": True}

    @pytest.mark.parametrize("release", RELEASES)
    def test_patched_only_the_scattered_dense_layer_keeps_it(
        self, observe: Observer, release: str
    ) -> None:
        decisions = fusion_decisions(scattered_mlp(observe, release, patched=True))

        assert decisions == {"SCATTERED": False, "FULL": True}
