"""The rig itself: what it writes is what it says, and what it starts is gone in the end."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from multiprocessing import shared_memory
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import wheels
from rig import environment as rig_environment
from rig import reaper
from rig.checkpoints import CONFIGS, ensure_model, write_model
from rig.environment import Environment, RigError
from rig.ledger import LedgerLine, read_ledger
from rig.releases import RELEASES
from rig.server import Completion, Server, ServerError
from rig.workload import compare


if TYPE_CHECKING:
    from collections.abc import Iterator

# Starts a process of its own and makes shared memory; a name to find the latter by is printed.
TREE = """
import subprocess, sys, time
from multiprocessing import resource_tracker, shared_memory
memory = shared_memory.SharedMemory(create=True, size=16)
resource_tracker.unregister(memory._name, "shared_memory")
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
child = subprocess.Popen(sleep, stdout=subprocess.DEVNULL)
print(memory.name, child.pid, flush=True)
time.sleep(600)
"""


class TestGuard:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "guarded"
        folder.mkdir()
        return folder

    @pytest.fixture
    def guarded(self, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
        process = reaper.start([sys.executable, "-u", "-c", TREE], folder, os.environ)
        yield process
        reaper.stop(process)

    def output(self, folder: Path) -> list[str]:
        log = folder / "log"
        deadline = time.monotonic() + 10
        while not (log.exists() and log.read_text().endswith("\n")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return log.read_text().split()

    def test_the_session_is_the_command_and_what_it_has_started(
        self, guarded: subprocess.Popen[bytes], folder: Path
    ) -> None:
        _, child = self.output(folder)
        session = reaper.session_of(folder)

        assert session is not None
        assert {session, int(child)} <= set(reaper.members(session))
        assert guarded.pid not in reaper.members(session)
        assert reaper.status_of(folder) is None

    def test_when_stopped_it_leaves_no_process_no_shared_memory_and_no_folder(
        self, guarded: subprocess.Popen[bytes], folder: Path
    ) -> None:
        memory, _ = self.output(folder)
        session = reaper.session_of(folder)
        assert session is not None

        reaper.stop(guarded)

        assert reaper.members(session) == []
        assert not folder.exists()
        with pytest.raises(FileNotFoundError):
            shared_memory.SharedMemory(memory)

    def test_when_its_owner_is_killed_it_leaves_nothing_either(self, folder: Path) -> None:
        owner = (
            "import os, sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
            "from rig import reaper\n"
            "reaper.start([sys.executable, '-u', '-c', sys.argv[3]], Path(sys.argv[2]), os.environ)"
            "\ntime.sleep(600)\n"
        )
        tests = str(rig_environment.HERE.parent)
        with subprocess.Popen([sys.executable, "-c", owner, tests, str(folder), TREE]) as process:
            self.output(folder)
            session = reaper.session_of(folder)
            assert session is not None
            process.kill()

        deadline = time.monotonic() + 10
        while folder.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not folder.exists()
        assert reaper.members(session) == []

    def test_the_exit_status_is_known(self, folder: Path) -> None:
        process = reaper.start([sys.executable, "-c", "raise SystemExit(3)"], folder, os.environ)
        deadline = time.monotonic() + 10
        while reaper.status_of(folder) is None and time.monotonic() < deadline:
            time.sleep(0.02)

        status = reaper.status_of(folder)
        reaper.stop(process)

        assert status == 3


class TestModels:
    @pytest.mark.parametrize("name", CONFIGS)
    def test_a_checkpoint_is_the_same_down_to_the_bit(self, name: str, tmp_path: Path) -> None:
        folders = [tmp_path / "first", tmp_path / "second"]
        for folder in folders:
            folder.mkdir()
            write_model(name, folder)

        first, second = (
            {path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders
        )
        assert first == second

    @pytest.mark.parametrize("name", CONFIGS)
    def test_the_header_covers_the_weights_without_a_gap(self, name: str, tmp_path: Path) -> None:
        write_model(name, tmp_path)

        data = (tmp_path / "model.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        del header["__metadata__"]
        end = 0
        for tensor in header.values():
            assert tensor["data_offsets"][0] == end
            end = tensor["data_offsets"][1]
        assert 8 + length + end == len(data)

    def test_the_tokenizer_knows_every_byte_once(self, tmp_path: Path) -> None:
        write_model("deepseek-v3", tmp_path)

        vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
        assert sorted(vocabulary.values()) == list(range(256 + 3))
        assert vocabulary["A"] == ord("A")
        assert vocabulary["Ġ"] == ord(" ")

    def test_a_checkpoint_is_written_once(self, tmp_path: Path) -> None:
        first = ensure_model("qwen3-moe", tmp_path)
        written = (first / "config.json").stat().st_mtime_ns

        assert ensure_model("qwen3-moe", tmp_path) == first
        assert (first / "config.json").stat().st_mtime_ns == written
        assert [path.name for path in tmp_path.iterdir()] == [first.name]


class TestComparison:
    REFERENCE = (Completion((1, 2), (-1.0, -2.0)), Completion((3, 4), (-3.0,)))

    def test_an_answer_does_not_differ_from_itself(self) -> None:
        assert compare(self.REFERENCE, self.REFERENCE).is_noise

    def test_other_tokens_are_no_noise(self) -> None:
        other = (Completion((1, 9), (-1.0, -2.0)), self.REFERENCE[1])

        difference = compare(other, self.REFERENCE)

        assert (difference.same_tokens, difference.prompts) == (1, 2)
        assert not difference.is_noise

    def test_log_probabilities_are_compared_token_by_token(self) -> None:
        other = (Completion((1, 2), (-1.5, -2.0)), Completion((3, 4), (-4.0,)))

        difference = compare(other, self.REFERENCE)

        assert (difference.mean, difference.max) == (0.5, 1.0)
        assert not difference.is_noise


def test_ledger_lines_are_found_among_others() -> None:
    log = (
        "[2026-01-01 00:00:00] server_args=ServerArgs(model_path='/cache/sglang-commfix/rig')\n"
        "[2026-01-01 00:00:00 pid=12] INFO sglang-commfix: applying something\n"
        "[2026-01-01 00:00:00] INFO:     Uvicorn running\n"
    )

    assert read_ledger(log) == [LedgerLine(12, "INFO", "applying something")]


class TestEnvironment:
    @pytest.fixture
    def pip(self, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        """Stands in for pip; a list of what it was asked for. Fails when it is "broken"."""
        calls: list[list[str]] = []

        def install(self: object, name: str, *command: str) -> None:
            calls.append(list(command))
            folder = Path(command[command.index("--target") + 1])
            folder.mkdir(parents=True)
            (folder / "module.py").touch()
            if "broken" in calls[0]:
                calls[0].remove("broken")
                raise RigError("interrupted")

        monkeypatch.setattr(rig_environment._Builder, "_run", install)
        monkeypatch.setattr(wheels, "fetch", lambda *_, **__: None)
        return calls

    def build(self, root: Path) -> Path:
        environment = Environment(root, (3, 11))
        builder = rig_environment._Builder(environment, sys.executable, print, lock=-1)
        release = next(one for one in RELEASES.values() if one.transformers is not None)
        builder.release(release)
        return environment.transformers_folder(str(release.transformers))

    def test_a_part_is_built_once(self, pip: list[list[str]], tmp_path: Path) -> None:
        assert self.build(tmp_path) == self.build(tmp_path)

        assert len(pip) == 1
        assert any("requirements-transformers-" in word for word in pip[0])
        assert "--no-deps" in pip[0]

    def test_an_interrupted_part_is_built_again(self, pip: list[list[str]], tmp_path: Path) -> None:
        pip.append(["broken"])
        with pytest.raises(RigError, match="interrupted"):
            self.build(tmp_path)

        folder = self.build(tmp_path)

        assert (folder / "module.py").exists()
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]

    def test_an_outdated_part_is_built_again(self, pip: list[list[str]], tmp_path: Path) -> None:
        folder = self.build(tmp_path)
        (folder / "leftover.py").touch()
        (folder / ".rig-stamp").write_text("another version")

        self.build(tmp_path)

        assert len(pip) == 2
        assert not (folder / "leftover.py").exists()

    def test_one_builder_waits_for_the_other(self, tmp_path: Path) -> None:
        holder = (
            "import sys, time; sys.path.insert(0, sys.argv[1])\n"
            "from rig.environment import _lock; from pathlib import Path\n"
            "with _lock(Path(sys.argv[2]), print):\n"
            "    print('held', flush=True); time.sleep(0.5)\n"
        )
        tests = str(rig_environment.HERE.parent)
        lock = tmp_path / "lock"
        with subprocess.Popen(
            [sys.executable, "-c", holder, tests, str(lock)], stdout=subprocess.PIPE
        ) as other:
            assert other.stdout is not None
            other.stdout.readline()
            said: list[str] = []
            started = time.monotonic()
            with rig_environment._lock(lock, said.append):
                assert time.monotonic() - started > 0.2
        assert said == ["waiting for another process that builds the environment"]

    def test_an_unknown_release_is_named_with_the_known_ones(self, tmp_path: Path) -> None:
        with pytest.raises(RigError, match=r"unknown sglang release 9\.9; .*0\.5\.11"):
            Environment(tmp_path, (3, 11)).import_path("9.9")


@pytest.mark.servers
def test_a_server_that_does_not_start_shows_the_end_of_its_log(environment: Environment) -> None:
    model = ensure_model("deepseek-v3", environment.models)
    server = Server("0.5.11", model, ["--no-such-flag"], environment=environment)

    with pytest.raises(ServerError, match=r"(?s)ended with status 2.*--no-such-flag"):
        server.__enter__()

    assert "--no-such-flag" in server.log
    with pytest.raises(ServerError, match="not running"):
        server.processes()
