"""A Python of the rig that has one release of sglang, and answers questions.

    (found,) = ask("0.5.11", PROGRAM, question, environment=ensure(["0.5.11"]), patches="1")

The program is a module of the rig or a file; it hands its function to `answering.answer`. Question
and answer are a line of JSON each. What else the program and its children print is its `log`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rig.environment import RigError
from rig.ledger import LedgerLine, read_ledger


if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from typing_extensions import Self

    from rig.environment import Environment


PATIENCE = 600.0


class Respondent:
    """Imports on entry, and is gone on exit; the ranks that it has forked are gone with it."""

    def __init__(
        self,
        release: str,
        program: str | Path,
        *arguments: str,
        environment: Environment,
        patches: str | None = None,
        variables: Mapping[str, str | None] | None = None,
        patience: float = PATIENCE,
    ) -> None:
        """Name the release and the program.

        `patches` is the value of SGLANG_COMMFIX, None leaves it unset. Of `variables`, too, None
        takes one out. `patience` is the seconds that an answer may take, imports counted in the
        first.
        """
        self.release = release
        self._environment = environment
        self._command = [str(environment.python), *_named(program), *arguments]
        self._variables = {**(variables or {}), "SGLANG_COMMFIX": patches}
        self._patience = patience
        self._process: subprocess.Popen[str] | None = None
        self._folder: Path | None = None
        self._log = ""

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="rig-asked-"))
        variables: dict[str, str | None] = {
            **self._environment.variables(self.release, self._folder),
            **self._variables,
        }
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env={name: value for name, value in variables.items() if value is not None},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        try:
            self._check(self._receive())
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

    def __call__(self, question: object) -> Any:
        """Return the answer; RigError if there is none, with the end of the log."""
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(question), file=self._process.stdin, flush=True)
        return self._receive()

    @property
    def log(self) -> str:
        """All that the process and its ranks have written; stays readable after the end."""
        if self._folder is not None:
            self._log = (self._folder / "log").read_text(errors="replace")
        return self._log

    def ledger(self) -> list[LedgerLine]:
        """What sglang-commfix has logged."""
        return read_ledger(self.log)

    def _receive(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        timer = threading.Timer(self._patience, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        ended_in_time = timer.is_alive()
        timer.cancel()
        if not line:
            what = "ended" if ended_in_time else f"gave no answer in {self._patience:.0f} s"
            tail = "\n".join(self.log.splitlines()[-40:])
            raise RigError(f"asking sglang {self.release}: it {what}. End of the log:\n{tail}")
        return json.loads(line)

    def _check(self, package: str | None) -> None:
        expected = self._environment.package_folder(self.release) / "sglang"
        if package is not None and Path(package).resolve() != expected.resolve():
            raise RigError(f"sglang was imported from {package}, not from {expected}")

    def _stop(self) -> None:
        if self._process is not None:
            # Ranks end with it: the kernel sees to that, see `answering`.
            self._process.kill()
            self._process.communicate()
            self._process = None
        if self._folder is not None:
            _ = self.log
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def ask(
    release: str,
    program: str | Path,
    *questions: object,
    environment: Environment,
    patches: str | None = None,
    variables: Mapping[str, str | None] | None = None,
    patience: float = PATIENCE,
) -> list[Any]:
    """Return the answers of one `Respondent`, which is started and stopped for them."""
    asked = Respondent(
        release,
        program,
        environment=environment,
        patches=patches,
        variables=variables,
        patience=patience,
    )
    with asked:
        return [asked(question) for question in questions]


def _named(program: str | Path) -> list[str]:
    return [str(program)] if isinstance(program, Path) else ["-m", program]
