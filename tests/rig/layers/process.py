"""One Python of the rig's environment that has a release of sglang imported, and runs cases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rig.asking import Respondent
from rig.checkpoints import ensure_model
from rig.layers.case import Case, Outcome, RankReport


if TYPE_CHECKING:
    from rig.environment import Environment


# sglang refuses GPT-OSS with the attention that is replaced here.
_ACCEPTED = frozenset({"deepseek-v3", "qwen3-moe"})


class LayerProcess(Respondent):
    """Starts on entry; every rank of every case is gone on exit.

    with LayerProcess("0.5.11", environment=ensure(["0.5.11"]), patches="1") as layers:
        print(layers.run(Case(Layout(tp=2, dp=2, ep=2), tokens=(4, 1))))
    """

    def __init__(
        self, release: str, *, environment: Environment, patches: str | None = None
    ) -> None:
        """`patches` is the value of SGLANG_COMMFIX; None leaves it unset."""
        super().__init__(release, "rig.layers.forks", environment=environment, patches=patches)
        self._models = environment.models

    def run(self, case: Case) -> Outcome:
        """What a rank raises is in the outcome; RigError if the process itself is gone."""
        # sglang's own arguments want one; no weight of it is read.
        name = case.model if case.model in _ACCEPTED else "deepseek-v3"
        checkpoint = str(ensure_model(name, self._models))
        ranks = self({"case": case.to_json(), "checkpoint": checkpoint})
        return Outcome(tuple(RankReport.from_json(rank) for rank in ranks))
