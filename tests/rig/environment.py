"""The private environment in which the rig's servers run, built once and kept in a cache folder.

    ROOT/lock                          one builder at a time
    ROOT/cp311/venv/                   torch, sglang's dependencies, sglang itself, sglang-commfix
    ROOT/cp311/transformers/VERSION/   for releases that need another transformers
    ROOT/flashinfer/VERSION/           see flashinfer.py
    ROOT/models/                       see models.py
    ROOT/logs/                         what pip said

ROOT is `$SGLANG_COMMFIX_RIG`, else `sglang-commfix/rig` in the user's cache folder. Every part
carries a stamp with the hash of what it was made from, written last: an interrupted or outdated
part is thrown away and made again.

Every other sglang release is in the cache that the tools have, and shadows the installed one.

Only the standard library is imported: this runs on a bare Python. `python -m rig.environment`
builds it ahead of its use.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import wheels

from rig.releases import DECISIONS, INSTALLED, RELEASES, Release


HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
TORCH = "torch==2.13.0"

# sglang's platform wheels exist for these.
SUPPORTED_PYTHONS = ((3, 11), (3, 12), (3, 10), (3, 13))

_STAMP = ".rig-stamp"

LOOPBACK = "127.0.0.1"

_VARIABLES = {
    "SGLANG_USE_CPU_ENGINE": "1",
    # sglang's own Triton kernels, on CPU tensors.
    "TRITON_INTERPRET": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
    # Where there is a GPU, it is not for these servers.
    "CUDA_VISIBLE_DEVICES": "",
    "HIP_VISIBLE_DEVICES": "",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "SGLANG_HOST_IP": LOOPBACK,
    "HOST_IP": LOOPBACK,
    "PYTHONUNBUFFERED": "1",
    "PYTHONWARNINGS": "ignore",
}

# What the caller has set for sglang, Python or a proxy must not decide what a test sees.
_NOT_INHERITED = ("SGLANG", "PYTHON", "RIG_", "TRITON_", "HF_", "TORCH", "VIRTUAL_ENV")

# torchvision registers these operators from its binary half. A build for CUDA cannot load that
# half beside a CPU torch, and then `import torchvision` fails for want of their declarations.
_TORCHVISION_OPERATORS = """\
import torch as _torch

_declarations = _torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    _declarations.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

"""

Say = Callable[[str], None]


class RigError(Exception):
    """The rig cannot do what was asked; the message says why and where to look."""


@dataclass(frozen=True)
class Environment:
    """Where everything lies. Nothing here builds: see `ensure`."""

    root: Path
    version: tuple[int, int]

    @property
    def base(self) -> Path:
        return self.root / "cp{}{}".format(*self.version)

    @property
    def venv(self) -> Path:
        return self.base / "venv"

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        return self.venv / "lib" / "python{}.{}".format(*self.version) / "site-packages"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def import_path(self, version: str) -> list[Path]:
        """The folders that must be in front of site-packages for this sglang release."""
        release = _release(version)
        folders = []
        if release.transformers is not None:
            folders.append(self.transformers_folder(release.transformers))
        if version != INSTALLED:
            folders.append(self.release_folder(version))
        return folders

    def variables(self, version: str, scratch: Path) -> dict[str, str]:
        """What a process that imports this sglang release on a CPU must find in its environment."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(_NOT_INHERITED) and not name.lower().endswith("_proxy")
        }
        path = os.pathsep.join(map(str, [HERE / "shims", *self.import_path(version)]))
        return {**inherited, **_VARIABLES, "TMPDIR": str(scratch), "PYTHONPATH": path}

    def package_folder(self, version: str) -> Path:
        """The folder that holds this sglang release."""
        return self.site_packages if version == INSTALLED else self.release_folder(version)

    def release_folder(self, version: str) -> Path:
        return wheels.cache_folder() / version

    def transformers_folder(self, version: str) -> Path:
        return self.base / "transformers" / version


def default_root() -> Path:
    """The cache folder, from the environment."""
    chosen = os.environ.get("SGLANG_COMMFIX_RIG")
    if chosen:
        return Path(chosen).expanduser().resolve()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().resolve() / "sglang-commfix" / "rig"


def ensure(
    releases: Iterable[str] = (INSTALLED,),
    *,
    root: Path | None = None,
    with_project: bool = True,
    say: Say | None = None,
) -> Environment:
    """Build what is missing or outdated for these releases, and return the environment."""
    interpreter, version = _interpreter()
    environment = Environment(root or default_root(), version)
    environment.logs.mkdir(parents=True, exist_ok=True)
    say = say or _print
    with _lock(environment.root / "lock", say) as lock:
        builder = _Builder(environment, interpreter, say, lock)
        builder.venv()
        for release in map(_release, releases):
            builder.release(release)
        if with_project:
            builder.project(REPOSITORY)
    return environment


def ensure_part_of_wheel(environment: Environment, wanted: str, part: str, folder: Path) -> None:
    """Have the Python files below `part` of the wheel of a requirement in `folder`."""
    with _lock(environment.root / "lock", _print), tempfile.TemporaryDirectory() as scratch:
        if not folder.is_dir():
            wheels.unpack(wheels.download(wanted, Path(scratch)), folder, [f"{part}/"])


class _Builder:
    def __init__(self, environment: Environment, interpreter: str, say: Say, lock: int) -> None:
        self.environment = environment
        self.interpreter = interpreter
        self.say = say
        self.lock = lock

    def venv(self) -> None:
        environment = self.environment
        dependencies = HERE / "requirements.txt"
        without_dependencies = HERE / "requirements-no-deps.txt"
        key = _digest(
            TORCH, INSTALLED, _TORCHVISION_OPERATORS,
            dependencies.read_text(), without_dependencies.read_text(),
        )  # fmt: skip
        if _is_current(environment.venv, key) and environment.python.exists():
            return
        self.say(f"building the environment in {environment.base} (once; a few minutes)")
        _remove(environment.venv)
        self._run("venv", self.interpreter, "-m", "venv", str(environment.venv))
        # Alone and first, so that nothing else decides which build of torch is taken.
        self._pip(TORCH)
        self._pip("-r", str(dependencies), name="dependencies")
        self._pip("--no-deps", "-r", str(without_dependencies), name="packages without deps")
        self._pip("--no-deps", f"sglang=={INSTALLED}")
        self._make_torchvision_importable()
        _stamp(environment.venv, key)

    def release(self, release: Release) -> None:
        if release.transformers is not None:
            requirements = HERE / f"requirements-transformers-{release.transformers}.txt"
            self._folder(
                self.environment.transformers_folder(release.transformers),
                f"transformers=={release.transformers}",
                "-r", str(requirements),
                key=_digest(requirements.read_text()),
            )  # fmt: skip
        if release.version != INSTALLED:
            parts = ("sglang/", f"sglang-{release.version}.dist-info/")
            python = "{}.{}".format(*self.environment.version)
            wheels.fetch(release.version, parts, python=python)

    def project(self, repository: Path) -> None:
        """Install the project itself, for real: start-up hooks in a wheel must be seen to work."""
        if not (repository / "pyproject.toml").is_file():
            raise RigError(f"{repository} has no pyproject.toml: cannot install sglang-commfix")
        stamp = self.environment.venv / f"{_STAMP}-project"
        with tempfile.TemporaryDirectory(prefix="rig-build-") as scratch:
            # A build leaves folders behind in the source tree: build from a copy.
            copy = Path(scratch) / "source"
            shutil.copytree(repository, copy, ignore=_not_for_the_build, symlinks=True)
            key = _tree_digest(copy)
            if stamp.is_file() and stamp.read_text() == key:
                return
            stamp.unlink(missing_ok=True)
            self._pip(
                "--no-deps", "--force-reinstall", "--no-cache-dir", str(copy), name="sglang-commfix"
            )
        stamp.write_text(key)

    def _folder(self, folder: Path, name: str, *what: str, key: str) -> None:
        if _is_current(folder, key):
            return
        partial = folder.with_name(folder.name + ".partial")
        _remove(partial)
        _remove(folder)
        self._pip("--no-deps", "--target", str(partial), *what, name=name)
        _stamp(partial, key)
        partial.rename(folder)

    def _make_torchvision_importable(self) -> None:
        python = str(self.environment.python)
        probe = (python, "-c", "import torchvision")
        if _succeeds(probe):
            return
        module = self.environment.site_packages / "torchvision" / "__init__.py"
        module.write_text(_TORCHVISION_OPERATORS + module.read_text())
        self._run("torchvision", *probe)

    def _pip(self, *arguments: str, name: str | None = None) -> None:
        self._run(
            f"install {name or arguments[-1]}",
            str(self.environment.python), "-m", "pip", "install",
            "--disable-pip-version-check", "--no-input", "--no-compile", *arguments,
        )  # fmt: skip

    def _run(self, name: str, *command: str) -> None:
        log = self.environment.logs / (_file_name(name) + ".log")
        started = time.monotonic()
        self.say(f"{name} ...")
        with log.open("wb") as output:
            done = subprocess.run(
                command,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_clean_environment(),
                # If this process is killed, its installer still works: so long the lock holds.
                pass_fds=(self.lock,),
            )
        if done.returncode != 0:
            raise RigError(f"{name} failed ({log}):\n{_tail(log, 15)}")
        self.say(f"{name}: done in {time.monotonic() - started:.0f} s")


@functools.cache
def _interpreter() -> tuple[str, tuple[int, int]]:
    """This Python if sglang has wheels for it, else another one found on PATH."""
    own = sys.version_info[:2]
    if own in SUPPORTED_PYTHONS:
        return sys.executable, own
    for version in SUPPORTED_PYTHONS:
        found = shutil.which("python{}.{}".format(*version))
        if found and _succeeds((found, "-c", "")):
            return found, version
    wanted = ", ".join("{}.{}".format(*version) for version in sorted(SUPPORTED_PYTHONS))
    raise RigError(f"sglang has wheels for Python {wanted}; none of them was found")


@contextlib.contextmanager
def _lock(path: Path, say: Say) -> Iterator[int]:
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another process that builds the environment")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def _release(version: str) -> Release:
    if version not in DECISIONS:
        raise RigError(f"unknown sglang release {version}; the rig has {', '.join(DECISIONS)}")
    return DECISIONS[version]


def _succeeds(command: Sequence[str]) -> bool:
    done = subprocess.run(command, check=False, env=_clean_environment(), capture_output=True)
    return done.returncode == 0


def _clean_environment() -> dict[str, str]:
    """The caller's environment without what would redirect pip or Python elsewhere."""
    unwanted = ("PYTHON", "SGLANG_COMMFIX", "VIRTUAL_ENV")
    redirecting = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_REQUIRE_VIRTUALENV")
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(unwanted) and name not in redirecting
    }


def _not_for_the_build(folder: str, names: Sequence[str]) -> set[str]:
    top = {"tests", "benchmarks", "docs", "build", "dist"}
    ignored = {name for name in names if name == "__pycache__" or name.endswith(".egg-info")}
    if Path(folder).resolve() == REPOSITORY:
        ignored |= {name for name in names if name in top or name.startswith(".")}
    return ignored


def _tree_digest(folder: Path) -> str:
    parts: list[str | bytes] = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            parts += [path.relative_to(folder).as_posix(), path.read_bytes()]
    return _digest(*parts)


def _digest(*parts: str | bytes) -> str:
    result = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        result.update(len(data).to_bytes(8, "big") + data)
    return result.hexdigest()


def _is_current(folder: Path, key: str) -> bool:
    stamp = folder / _STAMP
    return stamp.is_file() and stamp.read_text() == key


def _stamp(folder: Path, key: str) -> None:
    (folder / _STAMP).write_text(key)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _tail(log: Path, count: int) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:])


def _file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in ".=-" else "-" for letter in text)


def _print(line: str) -> None:
    print(f"[rig] {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    ensure(RELEASES)
