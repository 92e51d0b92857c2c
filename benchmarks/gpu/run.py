"""Serves each case without and with the patches on real GPUs, and compares with one rank.

For every release a Python in which it and this package are installed::

    python benchmarks/gpu/models.py /tmp/models
    python benchmarks/gpu/run.py /tmp/out --models /tmp/models --gpus 2 \
        --python 0.5.12.post1=/venvs/0.5.12.post1/bin/python --python 0.5.17=/venvs/…/bin/python

Cases of a release that no ``--python`` names are left out. Where a case has more ranks than there
are GPUs, ranks share them (see ``site/sitecustomize.py``). Cases run side by side, so that no time
means anything. ``summary.json`` has every figure; what has an outcome already is not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cases import CASES, COMMON, LENGTHS, Case
from compare import summary


HERE = Path(__file__).resolve().parent
ERROR = re.compile(r"(Error|Exception|CRITICAL|Aborted|Segmentation)\b")
NOISE = re.compile(r"Ignore import error|server_args=|ServerArgs\(|Warning|^\s+File |frame #")
SAID = re.compile(r" pid=(\d+)\] ([A-Z]+) sglang-commfix: (.*)")
DIGEST = re.compile(r"commfix=(\w+)")
POLL = 0.3
SETTLE = 2.0


@dataclass
class Run:
    """A case that is being served, without or with the patches."""

    case: Case
    arm: str
    name: str
    process: subprocess.Popen[bytes]
    start: float


class Runner:
    """Runs cases side by side, each in a process group of its own."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out = Path(options.out)
        self.pythons = dict(item.split("=", 1) for item in options.python)
        self.live: list[Run] = []
        self.started = time.time()
        self.count = 0

    def todo(self) -> list[tuple[Case, str]]:
        """Return what is to be run: a case, and whether it is patched."""
        wanted = self.options.only.split(",") if self.options.only else []
        chosen = [
            case
            for case in CASES
            if case.release in self.pythons
            and (not wanted or any(re.fullmatch(pattern, case.name) for pattern in wanted))
        ]
        runs = [(case, "") for case in chosen if not case.entry]
        for arm in self.options.arms.split(","):
            runs += [(case, arm) for case in chosen if case.entry and arm in case.arms]
        return [(case, arm) for case, arm in runs if not self.is_known(case, arm)]

    def is_known(self, case: Case, arm: str) -> bool:
        """Tell whether it has been run, and was not cut off by the deadline."""
        outcome = self.answers(case, arm).with_suffix(".outcome")
        return outcome.exists() and '"cut off"' not in outcome.read_text("utf-8")

    def answers(self, case: Case, arm: str) -> Path:
        """Return the file that the case's answers go to."""
        return self.out / f"{case.name}{'-' + arm if arm else ''}.json"

    def begin(self, case: Case, arm: str) -> None:
        """Start a case's engine."""
        answers = self.answers(case, arm)
        name = answers.stem
        port = self.options.port + 60 * self.count
        self.count += 1
        flags = {
            **COMMON,
            **case.flags,
            **json.loads(self.options.flags),
            "model_path": str(Path(self.options.models, case.model)),
            "port": port,
            "nccl_port": port + 30,
        }
        config = json.loads(Path(self.options.models, case.model, "config.json").read_text("utf-8"))
        file = self.out / f"{name}.case"
        content = {
            "flags": flags,
            "lengths": [n for n in LENGTHS if n < self.options.longest],
            "vocabulary": config["vocab_size"],
            "new_tokens": self.options.new_tokens,
            "together": case.together,
        }
        file.write_text(json.dumps(content), encoding="utf-8")
        kept = self.out / f"{name}.d"
        kept.mkdir(exist_ok=True)
        for old in (answers, *kept.glob("sglang-*")):
            old.unlink(missing_ok=True)
        environ = {k: v for k, v in os.environ.items() if not k.startswith("SGLANG_COMMFIX")}
        environ |= case.hooks
        environ["GPU_FUSED"] = str(kept)
        if "GPU_CAPTURE" in case.hooks:
            environ["GPU_CAPTURE"] = str(kept)
        if case.ranks > self.options.gpus:
            environ["GPU_SHARED"] = str(self.options.gpus)
            flags["disable_custom_all_reduce"] = True
            file.write_text(json.dumps(content), encoding="utf-8")
        if arm == "patched":
            environ |= {"SGLANG_COMMFIX": self.options.patches} | case.environ
        site = os.pathsep.join([str(HERE / "site"), os.environ.get("PYTHONPATH", "")])
        environ["PYTHONPATH"] = site.rstrip(os.pathsep)
        if case.ranks == 1 and self.options.gpus > 1:
            environ["CUDA_VISIBLE_DEVICES"] = str(self.count % self.options.gpus)
        command = [self.pythons[case.release], str(HERE / "ask.py"), str(file), str(answers)]
        with (self.out / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environ, start_new_session=True
            )
        self.live.append(Run(case, arm, name, process, time.time()))

    def end(self, run: Run, late: bool, over: bool) -> None:
        """End what is left of it, and write down how it went."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.process.pid, signal.SIGKILL)
        status = run.process.wait()
        self.live.remove(run)
        seconds = time.time() - run.start
        log = (self.out / f"{run.name}.log").read_text("utf-8", errors="replace").splitlines()
        answered = (self.out / f"{run.name}.json").exists()
        outcome: dict[str, Any] = {"outcome": "answers" if answered else "dies"}
        if (late or over) and not answered:
            outcome = {"outcome": "hangs" if late else "cut off", "seconds": round(seconds)}
            ready = any("ASK: ready" in line for line in log)
            outcome["where"] = "with the first prompts" if ready else "at start"
        if not answered:
            errors = [line for line in log if ERROR.search(line) and not NOISE.search(line)]
            outcome["errors"] = list(dict.fromkeys(line.strip()[:300] for line in errors))[-6:]
            outcome["last_lines"] = [line[:200] for line in log[-3:]]
            outcome["status"] = status
        outcome["log"] = sorted({line[-400:] for line in log if "sglang-commfix" in line})[:6]
        if run.arm == "patched":
            outcome["said"] = self.said(run.name, log)
        outcome["notes"] = sorted(
            {line[:300] for line in log if line.startswith(("GPU:", "ASK: w"))}
        )
        (self.out / f"{run.name}.outcome").write_text(json.dumps(outcome), encoding="utf-8")
        print(f"{outcome['outcome']:8s}{run.name:48s}{seconds:6.0f} s", flush=True)
        for line in outcome.get("errors", [])[-3:]:
            print(f"        {line[:220]}", flush=True)

    def said(self, name: str, log: list[str]) -> dict[str, Any]:
        """Return how many processes ran sglang, and what each of them said about the patches."""
        lines = [found.groups() for found in map(SAID.search, log) if found]
        told = [text for _, level, text in lines if level == "INFO"]
        others = Counter(
            f"{level} {text}".replace(socket.gethostname(), "HOST")
            for _, level, text in lines
            if level != "INFO"
        )
        return {
            "processes": len(list((self.out / f"{name}.d").glob("sglang-*"))),
            "with_a_line": len({pid for pid, level, _ in lines if level == "INFO"}),
            "lines": len(told),
            "commfix": sorted({word for text in told for word in DIGEST.findall(text)}),
            "others": dict(others),
        }

    def run(self) -> None:
        """Run everything that fits."""
        todo = self.todo()
        while todo or self.live:
            left = self.options.deadline - (time.time() - self.started)
            while todo and left > self.options.least:
                busy = sum(run.case.ranks for run in self.live)
                fits = (
                    i for i, (case, _) in enumerate(todo) if busy + case.ranks <= self.options.ranks
                )
                index = next(fits, None)
                if index is None or (index > 0 and busy + 2 > self.options.ranks):
                    break
                self.begin(*todo.pop(index))
            if not self.live:
                break
            time.sleep(POLL)
            for run in list(self.live):
                file = self.out / f"{run.name}.json"
                done = file.exists() and time.time() - file.stat().st_mtime > SETTLE
                late = time.time() - run.start > run.case.seconds
                if run.process.poll() is not None or done or late or left < 0:
                    self.end(run, late, left < 0)
        for case, arm in todo:
            print(f"left out: {case.name} {arm}", flush=True)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    made.add_argument("out")
    made.add_argument("--models", required=True)
    made.add_argument("--python", action="append", default=[], metavar="RELEASE=PYTHON")
    made.add_argument("--gpus", type=int, default=2)
    made.add_argument("--only", default="", help="regular expressions of names, with commas")
    made.add_argument("--arms", default="unpatched,patched")
    made.add_argument("--patches", default="1", help="SGLANG_COMMFIX of what is patched")
    made.add_argument("--ranks", type=int, default=24, help="ranks served at once")
    made.add_argument("--deadline", type=float, default=86400.0, help="seconds in all")
    made.add_argument("--least", type=float, default=60.0, help="seconds left to start a case with")
    made.add_argument("--longest", type=int, default=4096, help="prompts that long are left out")
    made.add_argument("--new-tokens", type=int, default=12)
    made.add_argument("--flags", default="{}", help="further flags of each engine, as JSON")
    made.add_argument("--port", type=int, default=12000)
    return made


def main() -> None:
    options = parser().parse_args()
    options.out = str(Path(options.out).resolve())
    Path(options.out).mkdir(parents=True, exist_ok=True)
    Runner(options).run()
    result = summary(Path(options.out))
    Path(options.out, "summary.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    for line in result["cases"]:
        print(json.dumps({k: v for k, v in line.items() if k not in {"log", "flags"}}), flush=True)


if __name__ == "__main__":
    main()
