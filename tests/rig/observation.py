"""Servers seen from outside: started once for each setup, asked, stopped, and remembered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rig.ledger import LedgerLine, read_ledger
from rig.models import ensure_model
from rig.server import Completion, Server
from rig.workload import PROMPTS


if TYPE_CHECKING:
    from collections.abc import Mapping

    from rig.environment import Environment


ONE_RANK: tuple[str, ...] = ()

# DP attention with as many expert-parallel ranks: MoE outputs are reduce-scattered.
ATTENTION_DP_2_EP_2 = ("--tp", "2", "--dp", "2", "--enable-dp-attention", "--ep", "2")

# Dense layers are not split over the ranks: their MLP runs in scatter mode SCATTERED.
TP_2_DENSE_TP_1 = ("--tp", "2", "--moe-dense-tp-size", "1")


@dataclass(frozen=True)
class Setup:
    """What a server is started with."""

    release: str
    flags: tuple[str, ...] = ONE_RANK
    patches: str | None = None
    """The value of SGLANG_COMMFIX; None leaves it unset."""

    model: str = "deepseek-v3"
    probes: tuple[str, ...] = ()
    max_running_requests: int = 8


@dataclass(frozen=True)
class Observation:
    """What is left of a server when it has been stopped."""

    answers: tuple[Completion, ...]
    """To `workload.PROMPTS`; none from a server with probes."""

    log: str

    processes: Mapping[int, str]
    """The server's processes when it had answered, by process id."""

    reports: Mapping[str, Mapping[int, Any]]
    """By probe and tensor-parallel rank."""

    def ledger(self) -> list[LedgerLine]:
        """What sglang-commfix has logged, in order."""
        return read_ledger(self.log)


class Observer:
    """Runs each setup once, however often it is asked for; a failure is remembered too."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._seen: dict[Setup, Observation | Exception] = {}

    def __call__(self, setup: Setup) -> Observation:
        if setup not in self._seen:
            try:
                self._seen[setup] = self._run(setup)
            except Exception as error:
                self._seen[setup] = error
        seen = self._seen[setup]
        if isinstance(seen, Exception):
            raise seen
        return seen

    def _run(self, setup: Setup) -> Observation:
        server = Server(
            setup.release,
            ensure_model(setup.model, self._environment.models),
            setup.flags,
            environment=self._environment,
            env={} if setup.patches is None else {"SGLANG_COMMFIX": setup.patches},
            probes=setup.probes,
            max_running_requests=setup.max_running_requests,
        )
        with server:
            # A probe may leave the ranks' collectives out of step: no questions after one.
            answers = () if setup.probes else tuple(server.generate(PROMPTS))
            processes = server.processes()
            reports = {probe: server.reports(probe) for probe in setup.probes}
        return Observation(answers, server.log, processes, reports)
