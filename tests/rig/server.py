"""A real `python -m sglang.launch_server` on the loopback interface, for as long as a block runs.

with Server("0.5.11", model, ["--tp", "2"], environment=ensure()) as server:
    server.generate([[1, 2, 3]])
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import shutil
import socket
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rig import reaper
from rig.environment import LOOPBACK, Environment, RigError
from rig.failure import has_crashed
from rig.releases import DECISIONS


if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType


_FLAGS = (
    "--device", "cpu",
    "--attention-backend", "torch_native",
    # bfloat16 scalars are beyond Triton's interpreter, and noise must stay far below any fault.
    "--dtype", "float32",
    "--grammar-backend", "none",
    "--disable-radix-cache",
    "--disable-overlap-schedule",
    "--disable-cuda-graph",
    "--skip-server-warmup",
    "--max-total-tokens", "2048",
    "--mem-fraction-static", "0.3",
)  # fmt: skip

# Below the range from which the kernel hands out ports by itself.
_PORTS = range(20_000, 30_000)

# Beside the port it is given, sglang takes a few that lie this far above it.
_DERIVED_PORTS = (0, *range(233, 245), 10_000)

# With these words sglang gives up its own model class for one that has none of its communication.
_FALLBACK = "falling back to Transformers"


class ServerError(RigError):
    """The server did not start, ended, or answered with an error; carries the end of its log."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log
        """All that the server had written by then."""


@dataclass(frozen=True)
class Completion:
    """The answer to one prompt."""

    tokens: tuple[int, ...]
    """Generated greedily."""

    prompt_logprobs: tuple[float, ...]
    """Of every prompt token but the first, which nothing predicts."""

    token_logprobs: tuple[float, ...] = ()
    """Of the generated tokens."""


class Server:
    """Starts on entry; on exit, every process that came of it is gone and its files are removed."""

    def __init__(
        self,
        release: str,
        model: Path,
        flags: Sequence[str] = (),
        *,
        environment: Environment,
        env: Mapping[str, str] | None = None,
        probes: Sequence[str] = (),
        max_running_requests: int = 8,
        start_timeout: float = 240.0,
        waiting: Callable[[], None] | None = None,
    ) -> None:
        """`probes` names modules in `rig/probes`, see `reports`.

        `waiting` is called a few times a second while the server starts.
        """
        self.release = release
        self.model = model
        self.flags = tuple(flags)
        self.environment = environment
        self.probes = tuple(probes)
        self._env = dict(env or {})
        self._max_running_requests = max_running_requests
        self._start_timeout = start_timeout
        self._waiting = waiting
        self._guard: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._port = 0
        self._log = ""

    def __enter__(self) -> Server:
        # A short path: sglang binds Unix sockets in it, and their names are limited in length.
        self._folder = Path(tempfile.mkdtemp(prefix="rig-"))
        try:
            self._start(self._folder)
            self._wait_until_healthy(self._folder)
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

    @property
    def log(self) -> str:
        """All that the server's processes have written; stays readable after the end."""
        if self._folder is not None:
            with contextlib.suppress(FileNotFoundError):
                self._log = (self._folder / "log").read_text(errors="replace")
        return self._log

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int | Sequence[int] = 8,
        timeout: float = 120.0,
    ) -> list[Completion]:
        """Continue token prompts greedily, all in one request.

        `max_new_tokens` is one number for all of them, or a number for each.
        """
        limits = (
            [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
        )
        answers = self._post(
            "/generate",
            {
                "input_ids": [list(prompt) for prompt in prompts],
                "sampling_params": [
                    {"temperature": 0, "max_new_tokens": limit, "ignore_eos": True}
                    for limit in limits
                ],
                "return_logprob": True,
                "logprob_start_len": 0,
            },
            timeout,
        )
        return [
            Completion(
                tokens=tuple(answer["output_ids"]),
                prompt_logprobs=tuple(
                    entry[0] for entry in answer["meta_info"]["input_token_logprobs"][1:]
                ),
                token_logprobs=tuple(
                    entry[0] for entry in answer["meta_info"]["output_token_logprobs"]
                ),
            )
            for answer in answers
        ]

    def processes(self) -> dict[int, str]:
        """What runs now, by process id: each process as it calls itself."""
        session = None if self._folder is None else reaper.session_of(self._folder)
        if session is None:
            raise ServerError("the server is not running")
        return {pid: title for pid in reaper.members(session) if (title := reaper.title(pid))}

    def reports(self, probe: str) -> dict[int, Any]:
        """What a probe has reported, by rank: the tensor-parallel one, if it does not say otherwise."""
        if self._folder is None:
            raise ServerError("the server is not running")
        return {
            int(path.suffixes[0].removeprefix(".")): json.loads(path.read_text())
            for path in (self._folder / "reports").glob(f"{probe}.*.json")
        }

    def _start(self, folder: Path) -> None:
        self._port = _free_port()
        (folder / "reports").mkdir()
        (folder / "tmp").mkdir()
        command = [
            str(self.environment.python), "-m", "sglang.launch_server",
            "--model-path", str(self.model),
            "--host", LOOPBACK, "--port", str(self._port),
            "--max-running-requests", str(self._max_running_requests),
            *self._common_flags(), *self.flags,
        ]  # fmt: skip
        self._guard = reaper.start(command, folder, self._process_environment(folder))

    def _common_flags(self) -> tuple[str, ...]:
        # The one is refused beside the other.
        if "--enable-hierarchical-cache" in self.flags:
            return tuple(flag for flag in _FLAGS if flag != "--disable-radix-cache")
        return _FLAGS

    def _process_environment(self, folder: Path) -> dict[str, str]:
        result = self.environment.variables(self.release, folder / "tmp")
        if self.probes:
            result["RIG_PROBES"] = ",".join(self.probes)
            result["RIG_PROBE_REPORTS"] = str(folder / "reports")
        ranks = int(_flag(self.flags, "--tp", "1"))
        if DECISIONS[self.release].binds_every_stage:
            ranks *= int(_flag(self.flags, "--pp-size", "1"))
        if ranks > 1:
            # sglang wants one list of cores for each rank; they may share cores.
            cores = sorted(os.sched_getaffinity(0))
            lists = (str(cores[rank % len(cores)]) for rank in range(ranks))
            result["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(lists)
        return {**result, **self._env}

    def _wait_until_healthy(self, folder: Path) -> None:
        deadline = time.monotonic() + self._start_timeout
        while not self._is_healthy():
            status = reaper.status_of(folder)
            if status is not None:
                raise self._error(f"ended with status {status}")
            if has_crashed(self.log):
                # The other ranks, and what they have to say.
                time.sleep(1.0)
                raise self._error("a process of it has crashed")
            if time.monotonic() > deadline:
                raise self._error(f"not healthy after {self._start_timeout:.0f} s")
            if self._waiting is not None:
                self._waiting()
            time.sleep(0.2)
        if _FALLBACK in self.log:
            raise self._error("sglang did not use its own model class")

    def _is_healthy(self) -> bool:
        try:
            with self._open("/health", None, timeout=5.0):
                return True
        except (OSError, http.client.HTTPException):
            return False

    def _post(self, path: str, content: object, timeout: float) -> Any:
        try:
            with self._open(path, json.dumps(content).encode(), timeout) as answer:
                return json.load(answer)
        except (OSError, http.client.HTTPException) as error:
            raise self._error(f"{path}: {error}") from error

    def _open(self, path: str, data: bytes | None, timeout: float) -> Any:
        request = urllib.request.Request(
            f"http://{LOOPBACK}:{self._port}{path}",
            data=data,
            headers={"Content-Type": "application/json"},
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return direct.open(request, timeout=timeout)

    def _error(self, what: str) -> ServerError:
        log = self.log
        tail = "\n".join(log.splitlines()[-40:])
        command = " ".join(self.flags)
        return ServerError(f"sglang {self.release} {command}: {what}. End of its log:\n{tail}", log)

    def _stop(self) -> None:
        _ = self.log
        if self._guard is not None:
            reaper.stop(self._guard)
            self._guard = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _flag(flags: Sequence[str], name: str, default: str) -> str:
    return flags[flags.index(name) + 1] if name in flags else default


def _free_port() -> int:
    """A port that is free together with those that sglang derives from it."""
    for port in random.SystemRandom().sample(_PORTS, 100):
        if all(_is_free(port + distance) for distance in _DERIVED_PORTS):
            return port
    raise ServerError("no free ports on the loopback interface")


def _is_free(port: int) -> bool:
    with socket.socket() as trial:
        try:
            trial.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
