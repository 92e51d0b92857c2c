"""Servers seen from outside: started once for each setup, asked, stopped, and remembered."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rig.checkpoints import ensure_model
from rig.ledger import LedgerLine, read_ledger
from rig.server import Completion, Server, ServerError
from rig.workload import PROMPTS, ROUNDS, Round


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rig.environment import Environment

    Waiting = Callable[[], None]


ONE_RANK: tuple[str, ...] = ()

# DP attention with as many expert-parallel ranks: MoE outputs are reduce-scattered.
ATTENTION_DP_2_EP_2 = ("--tp", "2", "--dp", "2", "--enable-dp-attention", "--ep", "2")

# What asks for FlashInfer's fused all-reduce from 0.5.14 on; before, the probe of this name does.
FUSION = ("--flashinfer-allreduce-fusion-backend", "trtllm")

# Probes that only look on, or play a kernel: their servers are asked, too.
_ONLOOKERS = frozenset(
    {"context_parallel", "hicache_writes", "played_kernel", "reduce_scatter", "steps"}
)

# Four ranks on two cores take their time.
_START_TIMEOUT = 480.0

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
    variables: tuple[tuple[str, str], ...] = ()
    """More of the server's environment: names and values."""

    rounds: tuple[Round, ...] = ROUNDS
    """What it is asked, unless a probe of it acts."""

    max_running_requests: int = 8


@dataclass(frozen=True)
class Observation:
    """What is left of a server when it has been stopped."""

    answers: tuple[Completion, ...]
    """To the prompts of all rounds, in order; none from a server with probes that act."""

    log: str

    processes: Mapping[int, str]
    """The server's processes when it had answered, by process id."""

    reports: Mapping[str, Mapping[int, Any]]
    """By probe and rank."""

    seconds: float
    """From the start of the server to its last answer."""

    @property
    def first_answers(self) -> tuple[Completion, ...]:
        """Those to `workload.PROMPTS`, the first round."""
        return self.answers[: len(PROMPTS)]

    def ledger(self) -> list[LedgerLine]:
        """What sglang-commfix has logged, in order."""
        return read_ledger(self.log)


@dataclass(frozen=True)
class Failure:
    """A server that did not start, or did not live to answer everything."""

    error: ServerError
    seconds: float


class Observer:
    """Runs each setup once, however often it is asked for; a failure is remembered too."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._seen: dict[Setup, Observation | Failure | Exception] = {}

    def __call__(self, setup: Setup) -> Observation:
        outcome = self.outcome(setup)
        if isinstance(outcome, Failure):
            raise outcome.error
        return outcome

    def outcome(self, setup: Setup, waiting: Waiting | None = None) -> Observation | Failure:
        """As a call, but a failure of the server is a result; `waiting` is `Server`'s."""
        if setup not in self._seen:
            try:
                self._seen[setup] = self._run(setup, waiting)
            except Exception as error:
                self._seen[setup] = error
        seen = self._seen[setup]
        if isinstance(seen, Exception):
            raise seen
        return seen

    def _run(self, setup: Setup, waiting: Waiting | None) -> Observation | Failure:
        variables = dict(setup.variables)
        if setup.patches is not None:
            variables["SGLANG_COMMFIX"] = setup.patches
        server = Server(
            setup.release,
            ensure_model(setup.model, self._environment.models),
            setup.flags,
            environment=self._environment,
            env=variables,
            probes=setup.probes,
            max_running_requests=setup.max_running_requests,
            start_timeout=_START_TIMEOUT,
            waiting=waiting,
        )
        started = time.monotonic()
        try:
            with server:
                # A probe may leave the ranks' collectives out of step: no questions after one.
                rounds = setup.rounds if _ONLOOKERS.issuperset(setup.probes) else ()
                answers = [
                    answer
                    for these in rounds
                    for answer in server.generate(these.prompts, these.new_tokens)
                ]
                seconds = time.monotonic() - started
                processes = server.processes()
                reports = {probe: server.reports(probe) for probe in setup.probes}
        except ServerError as error:
            return Failure(error, time.monotonic() - started)
        return Observation(tuple(answers), server.log, processes, reports, seconds)
