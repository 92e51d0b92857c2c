"""The checks of this project; ``make test`` runs those that need no choice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nox


nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True

PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
HERE = ".".join(map(str, sys.version_info[:2]))
PROJECT = nox.project.load_toml("pyproject.toml")
RIG = {"PYTHONPATH": "tests"}
BUILT: list[str] = []  # the wheel, once the first session has built it: it is for every Python
# What tests read of releases beside what the register looks at. A wheel is downloaded once for all.
READ = [
    "sglang/srt/arg_groups/",
    "sglang/srt/distributed/",
    "sglang/srt/layers/dp_attention.py",
    "sglang/srt/layers/moe/__init__.py",
    "sglang/srt/layers/moe/utils.py",
    "sglang/srt/models/",
    "sglang/srt/server_args.py",
    "sglang/srt/utils.py",
    "sglang/srt/utils/",
]


def _available() -> list[str]:
    """Return the supported Pythons of this machine; the one that runs nox is among them.

    pyenv's shims exist for Pythons that are not switched on, and fail: its own folders go first.
    """
    versions = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    others = [v for v in PYTHONS if v != HERE]
    folders = [str(f) for v in others for f in sorted(versions.glob(f"{v}.*/bin"))]
    os.environ["PATH"] = os.pathsep.join([*folders, os.environ["PATH"]])
    return [v for v in PYTHONS if v == HERE or _runs(f"python{v}")]


def _runs(python: str) -> bool:
    found = shutil.which(python)
    return found is not None and subprocess.run([found, "-c", ""], check=False).returncode == 0


def _group(*names: str) -> tuple[str, ...]:
    return nox.project.dependency_groups(PROJECT, *names)


def _install(session: nox.Session, *groups: str) -> None:
    """Install the project as a user does, not editable: tests see what is shipped."""
    session.install(*_group("test", *groups), *PROJECT["project"]["dependencies"])
    if not BUILT:
        folder = Path(session.create_tmp(), "wheel")
        shutil.rmtree(folder, ignore_errors=True)
        session.run("python", "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), ".")
        BUILT.extend(map(str, folder.glob("*.whl")))
    session.install("--force-reinstall", "--no-deps", *BUILT)


def _install_hosts(session: nox.Session) -> None:
    """Install other tools apart: their plug-ins for pytest would run in every test."""
    folder = Path(session.virtualenv.location, "hosts")
    if not folder.is_dir():
        session.install("--target", str(folder), *_group("hosts"))
    session.env["HOST_PACKAGES"] = str(folder)


@nox.session(python=HERE)
def lint(session: nox.Session) -> None:
    """Style and types."""
    session.install(*_group("lint"), *PROJECT["project"]["dependencies"])
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session(python=HERE)
def releases(session: nox.Session) -> None:
    """Fetch the published releases' files, and build what servers run in, so that no test has to.

    The one waits for the network, the other for pip: side by side.
    """
    _install(session)
    commands = ("tools/fingerprints.py", "--fetch", *READ), ("-m", "rig.environment")
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(session.run, "python", *one, env=RIG) for one in commands]
    for run in runs:
        run.result()


@nox.session(python=_available())
def engine(session: nox.Session) -> None:
    """Everything that needs no server; with coverage on the Python that runs nox.

    What releases hold is looked at there alone, and adds nothing to what is covered.
    """
    _install(session)
    tests = ["-n", "auto", "--dist", "worksteal"]
    without_servers = "not servers and not packaging"
    if session.python != HERE:
        if session.python == PYTHONS[0]:
            session.run("python", "tools/locks.py", "--check")  # no lock depends on its Python
        session.run(
            "pytest", *tests, "-m", f"{without_servers} and not one_python", *session.posargs
        )
        return
    _install_hosts(session)
    tests += ["-m", without_servers]
    machine = ["tests/engine", "tests/hook", "tests/command", "tests/tools"]
    hosts = "tests/hook/test_healthy_hosts.py"  # they run under coverage, too, and add nothing
    session.run("coverage", "erase")
    covered = [*machine, f"--ignore={hosts}"]
    session.run("coverage", "run", "-m", "pytest", *tests, *covered, *session.posargs)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report", "--fail-under=95")
    folders = [str(one) for one in sorted(Path("tests").iterdir()) if one.is_dir()]
    others = [one for one in folders if one not in machine]
    session.run("pytest", *tests, *others, hosts, "--durations=15", *session.posargs)


@nox.session(python=HERE)
def packaging(session: nox.Session) -> None:
    """Build the package and install it in every way."""
    _install(session, "package")
    session.run("pytest", "-m", "packaging", "tests/install", *session.posargs)


@nox.session(python=HERE)
def servers(session: nox.Session) -> None:
    """Real sglang servers on the CPU; ``-- -m servers`` for all of them.

    Half of a server's start is waiting: two files at once, and what files share is started once.
    """
    _install(session)
    chosen = session.posargs or ["-m", "servers and not servers_full"]
    session.run("pytest", "-v", "--durations=25", "-n", "2", "--dist", "loadfile", *chosen)


@nox.session(python=HERE)
def fuzz(session: nox.Session) -> None:
    """Mutants of real files: `-- --count 1000 --seed 1 --jobs 2`."""
    _install(session)
    session.run("python", "tests/rig/sources/fuzz.py", *session.posargs)


@nox.session(python=HERE)
def bench(session: nox.Session) -> None:
    """Measure what a Python start costs, and a process that imports sglang."""
    _install(session, "bench")
    session.run("python", "benchmarks/startup.py", *session.posargs)
    session.run("python", "benchmarks/plan.py", *session.posargs)
