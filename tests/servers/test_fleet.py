"""Ranks of one model run the same patches, or say that they do not, on real process groups."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rig.asking import Respondent
from rig.checkpoints import ensure_model
from rig.environment import Environment
from rig.server import Server, ServerError, _free_port


pytestmark = pytest.mark.servers

RELEASE, OTHER = "0.5.11", "0.5.10.post1"
ON = {"SGLANG_COMMFIX": "1"}
STRICT = ON | {"SGLANG_COMMFIX_STRICT": "1"}
SHORT = 4  # seconds, in place of 30, that a rank waits for one that says nothing


class Rank(NamedTuple):
    """What came of a rank."""

    status: int | None  # None: it hung
    log: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.log.splitlines() if "ERROR sglang-commfix" in line]

    @property
    def is_up(self) -> bool:
        return self.status == 0 and "\nup " in f"\n{self.log}"


class Fleet(Respondent):
    """A way to start ranks, each with its own variables."""

    def __init__(self, environment: Environment, folder: Path) -> None:
        super().__init__(RELEASE, "rig.fleet_ranks", environment=environment)
        self.environment = environment
        self.variables = environment.variables(RELEASE, folder)

    def run(self, *ranks: dict[str, Any], patience: float = 90) -> list[Rank]:
        found = self({"ranks": ranks, "port": _free_port(), "patience": patience})
        return [Rank(**one) for one in found]


@pytest.fixture(scope="module")
def fleet(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(environment, tmp_path_factory.mktemp("fleet")) as fleet:
        yield fleet


def on(environ: dict[str, str] = ON, **more: Any) -> dict[str, Any]:
    return {"environ": environ, **more}


def impatient(environ: dict[str, str] = ON, **more: Any) -> dict[str, Any]:
    return on(environ, wait=SHORT, **more)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_that_run_the_same_come_up_without_a_word(fleet: Fleet, size: int) -> None:
    ranks = fleet.run(*[on(STRICT) for _ in range(size)])
    assert [(rank.is_up, rank.errors) for rank in ranks] == [(True, [])] * size


def test_a_rank_that_comes_late_is_waited_for(fleet: Fleet) -> None:
    ranks = fleet.run(on(STRICT), on(STRICT, late=2))
    assert [(rank.is_up, rank.errors) for rank in ranks] == [(True, [])] * 2


def test_two_ways_to_select_the_same_text_and_an_older_register_with_it_agree(
    fleet: Fleet, tmp_path: Path
) -> None:
    def command(*words: str) -> str:
        python = [str(fleet.environment.python), "-m", "sglang_commfix"]
        return subprocess.run(
            [*python, *words], env=fleet.variables, capture_output=True, text=True, check=True
        ).stdout

    older = tmp_path / "older.json"
    command("lock", "--output", str(older))
    lock = json.loads(older.read_text())
    applied = [one for one in lock["decisions"] if one["decision"] == "apply"]
    on_by_default = [one for one in applied if one["kind"] in {"correctness", "stability"}]
    assert len(applied) < len(lock["decisions"])
    older.write_text(json.dumps(lock | {"decisions": applied}))
    same = ",".join(one["id"] for one in on_by_default)
    ranks = fleet.run(
        on(STRICT),
        on(STRICT | {"SGLANG_COMMFIX": same}),
        on(STRICT | {"SGLANG_COMMFIX_LOCK": str(older)}),
    )
    assert [(rank.is_up, rank.errors) for rank in ranks] == [(True, [])] * 3


class TestDifferences:
    """Proven ones end the start of every rank, whether strict or not."""

    ENTRY = "24785-sum-len-contract"

    def test_another_selection(self, fleet: Fleet) -> None:
        ranks = fleet.run(on(), on(ON | {"SGLANG_COMMFIX": f"1,-{self.ENTRY}"}))
        assert [rank.status for rank in ranks] == [1, 1]
        one, other = [rank.errors for rank in ranks]
        assert [line.partition(" ERROR ")[2] for line in one] == [
            line.partition(" ERROR ")[2] for line in other
        ]
        assert len(one) == 1
        assert "ranks of one model run different patches: rank 0 on " in one[0]
        assert f"(without {self.ENTRY})" in one[0]
        assert all("MixedFleetError" in rank.log for rank in ranks)

    def test_a_variable_lets_them_go_on(self, fleet: Fleet) -> None:
        mixed = ON | {"SGLANG_COMMFIX_ALLOW_MIXED": "1"}
        ranks = fleet.run(on(mixed), on(mixed | {"SGLANG_COMMFIX": f"1,-{self.ENTRY}"}))
        assert [(rank.is_up, len(rank.errors)) for rank in ranks] == [(True, 1)] * 2

    def test_another_sglang(self, fleet: Fleet) -> None:
        path = str(fleet.environment.release_folder(OTHER))
        ranks = fleet.run(on(), on(path=path))
        assert [rank.status for rank in ranks] == [1, 1]
        assert f"sglang 0.5.10 or {OTHER} at" in ranks[1].log

    def test_an_entry_that_changes_no_collective_is_an_error_and_ends_strict_ranks_alone(
        self, fleet: Fleet
    ) -> None:
        less = {"SGLANG_COMMFIX": "1,-triton-pool-alignment"}
        ranks = fleet.run(on(), on(ON | less))
        assert [(rank.is_up, len(rank.errors)) for rank in ranks] == [(True, 1)] * 2
        ranks = fleet.run(on(STRICT), on(STRICT | less))
        assert [rank.status for rank in ranks] == [78, 78]


class TestSilence:
    """A rank that says nothing is an error, and ends those that are strict."""

    def test_a_rank_without_the_variable(self, fleet: Fleet) -> None:
        ranks = fleet.run(impatient(), on({}))
        assert [(rank.is_up, len(rank.errors)) for rank in ranks] == [(True, 1), (True, 0)]
        assert f"rank 1 did not say within {SHORT} s what it runs" in ranks[0].errors[0]
        assert fleet.run(impatient(STRICT), on({}), patience=30)[0].status == 78

    def test_a_rank_that_is_killed_in_the_middle(self, fleet: Fleet) -> None:
        ranks = fleet.run(
            impatient(STRICT), impatient(STRICT), impatient(STRICT, ends=True), patience=40
        )
        assert [rank.status for rank in ranks] == [78, 78, 9]
        assert all("rank 2 did not say" in rank.errors[0] for rank in ranks[:2])

    def test_it_is_no_error_where_nothing_is_applied_that_changes_a_collective(
        self, fleet: Fleet
    ) -> None:
        alone = STRICT | {"SGLANG_COMMFIX": "triton-pool-alignment"}
        ranks = fleet.run(impatient(alone), on({}))
        assert [(rank.is_up, rank.errors) for rank in ranks] == [(True, [])] * 2

    def test_it_is_no_error_under_elastic_expert_parallelism(self, fleet: Fleet) -> None:
        rejoins = {"arguments": {"recovered_rank": True}}
        ranks = fleet.run(impatient(STRICT, **rejoins), on({}, **rejoins))
        assert [(rank.is_up, rank.errors) for rank in ranks] == [(True, [])] * 2


def test_a_comparison_that_fails_stops_no_rank_that_is_not_strict(fleet: Fleet) -> None:
    ranks = fleet.run(on(broken=True), on(broken=True))
    assert [(rank.is_up, len(rank.errors)) for rank in ranks] == [(True, 1)] * 2
    assert "ranks could not be compared: ConnectionError: gone" in ranks[0].errors[0]
    strict = fleet.run(on(STRICT, broken=True), on(STRICT, broken=True))
    assert [rank.status for rank in strict] == [78, 78]


class TestNodes:
    """Two real servers, each a node of one model, on the loopback interface."""

    @staticmethod
    def start(environment: Environment, *nodes: dict[str, str]) -> list[str]:
        """Start a node with each of the variables; return the logs, of those that serve "up"."""
        model = ensure_model("qwen3-moe", environment.models)
        address = f"127.0.0.1:{_free_port()}"

        def serve(rank: int) -> str:
            flags = ["--tp", "2", "--nnodes", "2", "--dist-init-addr", address]
            flags += ["--node-rank", str(rank)]
            server = Server(
                RELEASE, model, flags, environment=environment, env=nodes[rank], start_timeout=150
            )
            try:
                with server:
                    both.wait(150)
                    if rank == 0:
                        server.generate([[1, 2, 3]])
                    both.wait(150)
                    return f"up\n{server.log}"
            except ServerError as error:
                both.abort()
                return error.log
            except threading.BrokenBarrierError:
                return server.log

        both = threading.Barrier(2)
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(serve, range(2)))

    def test_other_selections_on_two_nodes_start_neither(self, environment: Environment) -> None:
        less = ON | {"SGLANG_COMMFIX": f"1,-{TestDifferences.ENTRY}"}
        logs = self.start(environment, ON, less)
        for log in logs:
            assert not log.startswith("up")
            assert "ERROR sglang-commfix: ranks of one model run different patches" in log

    @pytest.mark.servers_full
    def test_the_same_on_two_nodes_serves(self, environment: Environment) -> None:
        logs = self.start(environment, STRICT, STRICT)
        assert [log.partition("\n")[0] for log in logs] == ["up", "up"]
        assert not any("ERROR sglang-commfix" in log for log in logs)
        digests = {word for log in logs for word in log.split() if word.startswith("commfix=")}
        assert len(digests) == 1

    @pytest.mark.servers_full
    def test_a_node_without_the_variable_ends_the_other_if_that_is_strict(
        self, environment: Environment
    ) -> None:
        log, _ = self.start(environment, STRICT, {})
        assert not log.startswith("up")
        assert "rank 1 did not say within 30 s what it runs" in log
