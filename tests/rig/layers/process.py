"""One Python of the rig's environment that has a release of sglang imported, and runs cases."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rig.environment import RigError
from rig.layers.case import Case, Outcome, RankReport
from rig.ledger import LedgerLine, read_ledger
from rig.models import ensure_model


if TYPE_CHECKING:
    from types import TracebackType

    from rig.environment import Environment


# sglang refuses GPT-OSS with the attention that is replaced here.
_ACCEPTED = frozenset({"deepseek-v3", "qwen3-moe"})


class LayerProcess:
    """Starts on entry; every rank of every case is gone on exit.

    with LayerProcess("0.5.11", environment=ensure(["0.5.11"]), patches="1") as layers:
        print(layers.run(Case(Layout(tp=2, dp=2, ep=2), tokens=(4, 1))))
    """

    def __init__(
        self, release: str, *, environment: Environment, patches: str | None = None
    ) -> None:
        """`patches` is the value of SGLANG_COMMFIX; None leaves it unset."""
        self.release = release
        self._environment = environment
        self._patches = patches
        self._process: subprocess.Popen[str] | None = None
        self._folder: Path | None = None
        self._log = ""

    def __enter__(self) -> LayerProcess:
        self._folder = Path(tempfile.mkdtemp(prefix="rig-layers-"))
        variables = self._environment.variables(self.release, self._folder)
        if self._patches is not None:
            variables["SGLANG_COMMFIX"] = self._patches
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(self._environment.python), "-m", "rig.layers.worker"],
                cwd=self._folder,
                env=variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        try:
            self._check_release(self._receive()["sglang"])
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def run(self, case: Case) -> Outcome:
        """What a rank raises is in the outcome; RigError if the process itself is gone."""
        assert self._process is not None
        assert self._process.stdin is not None
        # sglang's own arguments want one; no weight of it is read.
        name = case.model if case.model in _ACCEPTED else "deepseek-v3"
        checkpoint = ensure_model(name, self._environment.models)
        request = {"case": case.to_json(), "checkpoint": str(checkpoint)}
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self._process.stdin, flush=True)
        return Outcome(tuple(RankReport.from_json(rank) for rank in self._receive()["ranks"]))

    @property
    def log(self) -> str:
        """All that the process and its ranks have written; stays readable after the end."""
        if self._folder is not None:
            self._log = (self._folder / "log").read_text(errors="replace")
        return self._log

    def ledger(self) -> list[LedgerLine]:
        """What sglang-commfix has logged."""
        return read_ledger(self.log)

    def _receive(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            tail = "\n".join(self.log.splitlines()[-40:])
            raise RigError(f"the layers of sglang {self.release} ended. End of the log:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _check_release(self, package: str) -> None:
        expected = self._environment.package_folder(self.release) / "sglang"
        if Path(package).resolve() != expected.resolve():
            raise RigError(f"sglang was imported from {package}, not from {expected}")

    def _stop(self) -> None:
        if self._process is not None:
            # Ranks end with it: the kernel sees to that.
            self._process.kill()
            self._process.communicate()
            self._process = None
        if self._folder is not None:
            _ = self.log
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
