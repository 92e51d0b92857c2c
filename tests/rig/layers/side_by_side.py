"""Layers seen from outside: each release is started once for each selection of patches."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from rig.environment import ensure
from rig.layers.process import LayerProcess


if TYPE_CHECKING:
    from collections.abc import Iterable

    from rig.layers.case import Case, Outcome
    from rig.ledger import LedgerLine


class LayerObserver:
    """Knows beforehand what it will be asked, runs all of a release at once, and remembers.

    Two processes run side by side, since most of it is waiting for imports: the one without
    patches and the one with them.
    """

    def __init__(self, wanted: Iterable[tuple[str, str | None, Case]]) -> None:
        """`wanted` has what will be asked for: release, value of SGLANG_COMMFIX, case."""
        self._wanted = list(dict.fromkeys(wanted))
        self._outcomes: dict[tuple[str, str | None, Case], Outcome] = {}
        self._ledgers: dict[tuple[str, str | None], Future[list[LedgerLine]]] = {}

    def __call__(self, release: str, patches: str | None, case: Case) -> Outcome:
        _ = self.ledger(release, patches)
        return self._outcomes[release, patches, case]

    def ledger(self, release: str, patches: str | None) -> list[LedgerLine]:
        """What sglang-commfix has logged; raises what went wrong with the process."""
        if (release, patches) not in self._ledgers:
            ensure([release])
            selections = dict.fromkeys(p for r, p, _ in self._wanted if r == release)
            with ThreadPoolExecutor(2) as pool:
                for selection in selections:
                    self._ledgers[release, selection] = pool.submit(self._run, release, selection)
        return self._ledgers[release, patches].result()

    def _run(self, release: str, patches: str | None) -> list[LedgerLine]:
        cases = [case for r, p, case in self._wanted if (r, p) == (release, patches)]
        with LayerProcess(release, environment=ensure([release]), patches=patches) as process:
            for case in cases:
                self._outcomes[release, patches, case] = process.run(case)
        return process.ledger()
