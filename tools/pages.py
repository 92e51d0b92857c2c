"""Write what programs print into the pages that show it.

A page marks each place: ``<!-- status: by tools/pages.py -->`` up to ``<!-- end -->``. What stands
between is printed by this package, in the shape of a wheel, beside a published release. Left out is
only what a number in brackets stands for: ``[8 more]``.

``python tools/pages.py`` writes the pages, ``--check`` fails if one is not current. What the demo
prints is kept in ``benchmarks/results/demo.txt``; ``--demo`` runs it again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from fingerprints import wanted_files
from generated import bring_up_to_date
from wheels import fetch

from sglang_commfix.engine.register import load, patches_folder
from sglang_commfix.engine.shipped import put_together
from sglang_commfix.run.plan import SHIPPED


if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/operations.md")
DEMO = ROOT / "benchmarks" / "results" / "demo.txt"
SITE = "/venv/lib/python3.11/site-packages"
STAMP = "[2026-11-26 09:30:00 pid=4711]"
LOGGED = "Each process of the patched server has logged:\n"
_STAMP = re.compile(r"\[[-0-9]+ [:0-9]+ pid=\d+\]")
_SECTION = re.compile(r"<!-- (?P<name>[-a-z]+): by tools/pages\.py -->\n.*?<!-- end -->", re.DOTALL)
_LOG = 'python -c "import sglang.srt"'


class Installation:
    """A folder with this package, as its wheel has it, and with a release of sglang.

    Commands run with that folder on their path, and the start-up hook in place. Neither sglang nor
    torch is imported: the packages that hold the modules are empty.
    """

    def __init__(self, release: str, folder: Path) -> None:
        self.site, self.work = folder / "site-packages", folder / "work"
        self.work.mkdir(parents=True)
        _install(self.site / "sglang_commfix")
        files = wanted_files(load().patches)
        source = fetch(release, files)
        for name in (name for name in files if (source / name).is_file()):
            (self.site / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, self.site / name)
        for package in ("sglang", "sglang/srt"):
            (self.site / package / "__init__.py").write_text("")
        programs = {"python": "", "sglang-commfix": " -m sglang_commfix"}
        for name, words in programs.items():
            program = folder / "bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{words} "$@"\n')
            program.chmod(0o755)
        self.environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SGLANG", "COVERAGE", "PYTHON"))
        }
        self.environ["PATH"] = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
        shim = self.site / "sglang_commfix" / "run" / "shim"
        self.environ["PYTHONPATH"] = os.pathsep.join([str(shim), str(self.site)])
        self.environ["PYTHONDONTWRITEBYTECODE"] = "1"

    def run(self, command: str, status: int | None = 0, **variables: str) -> str:
        """Run a shell command as an operator does; return all that it prints.

        Args:
            command: one line; the folder of the packages may be called :data:`SITE` in it.
            status: the exit status that it should have; ``None``: any.
            variables: more environment variables.

        """
        result = subprocess.run(
            ["sh", "-c", command.replace(SITE, str(self.site))],
            cwd=self.work,
            env={**self.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        said = _STAMP.sub(STAMP, result.stdout.replace(str(self.site), SITE))
        if status is not None and result.returncode != status:
            raise RuntimeError(f"{command}: exit status {result.returncode}\n{said}")
        return said


def _install(package: Path) -> None:
    """Copy this package as :mod:`hatch_build` makes a wheel of it."""
    source = ROOT / "sglang_commfix" if not SHIPPED.is_dir() else SHIPPED.parent
    left_out = shutil.ignore_patterns("__pycache__", "locks.json", "keys.json")
    shutil.copytree(source, package, ignore=left_out)
    if SHIPPED.is_dir():
        return
    shutil.copytree(patches_folder(), package / "patches", ignore=left_out)
    for name, data in put_together(load(), patches_folder()).items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_bytes(data)


def shortened(line: str, keep: int = 1) -> str:
    """Leave out of each list of ids in a line all but the first; say how many."""

    def short(found: re.Match[str]) -> str:
        ids = found.group().split(", ")
        more = [f"[{len(ids) - keep} more]"] if len(ids) > keep else []
        return ", ".join([*ids[:keep], *more])

    name = "|".join(re.escape(patch.id) for patch in load().patches)
    return re.sub(rf"(?:{name})(?:, (?:{name}))+", short, line)


def abridged(text: str, keep: int = 2) -> str:
    """Leave out of each run of lines of one kind all but the first two and the last; say how many.

    Lines about a patch each are of one kind, and so are those about a file each.
    """
    lines: list[str] = []
    for about, run in groupby(text.splitlines(), _about):
        own = [shortened(line) for line in run]
        if about and len(own) > keep + 2:
            own[keep:-1] = [f"[{len(own) - keep - 1} more]"]
        lines += own
    return "\n".join(lines)


def _about(line: str) -> str:
    words = line.split()
    names = {patch.id for patch in load().patches}
    if any(word.removesuffix(":") in names for word in words[:2]) and "for sglang" not in line:
        return "a patch"
    return "a file" if line.startswith("patching file") else ""


def chosen(parts: list[str], *ids: str) -> list[str]:
    """Keep of what ``status`` prints for each patch that for ``ids``; say how many are left out."""
    kept: list[str] = []
    for shown, run in groupby(parts, lambda part: part.split()[1] in ids):
        own = list(run)
        kept += own if shown else [f"[{len(own)} more]"]
    return kept


def block(text: str, language: str = "text") -> str:
    """Return a fenced block."""
    return f"```{language}\n{text.rstrip()}\n```"


def _log_line(site: Installation) -> str:
    return block(shortened(site.run(_LOG, SGLANG_COMMFIX="1")))


def _status(site: Installation) -> str:
    head, *patches, tail = site.run("sglang-commfix status").strip().split("\n\n")
    shown = chosen(
        patches, "24785-sum-len-contract", "32963-hybrid-ep-tp-fusion", "triton-pool-alignment"
    )
    return block("\n\n".join(["$ sglang-commfix status\n" + head, *shown, tail]), "console")


def _console(site: Installation, *commands: str) -> str:
    shown = (f"$ {one}\n{abridged(site.run(one))}" for one in commands)
    return block("\n".join(shown), "console")


def _export(site: Installation) -> str:
    apply = f"patch -p1 -d {SITE} < fixes.patch"
    return _console(site, "sglang-commfix export -o fixes.patch", apply)


def _series(site: Installation) -> str:
    return _console(site, "sglang-commfix export --series fixes", f"fixes/apply {SITE}")


def _lock(site: Installation) -> str:
    return _console(site, "sglang-commfix lock")


def _fleet(site: Installation) -> str:
    line = site.run(_LOG, SGLANG_COMMFIX="1")
    (site.work / "logs").mkdir()
    for host in ("first", "second"):
        (site.work / "logs" / f"{host}.log").write_text(8 * line)
    return _console(site, "grep -ho 'commfix=[0-9a-z]*' logs/*.log | sort | uniq -c")


def _lock_differs(site: Installation) -> str:
    site.run("sglang-commfix lock")
    with (site.site / "sglang/srt/layers/communicator.py").open("a") as file:
        file.write("# edited\n")
    return block(site.run(_LOG, SGLANG_COMMFIX="1").splitlines()[0])


def _in_process(site: Installation) -> str:
    plan = "sglang_commfix.activate('24785,19918')"
    patches = f"{plan}.modules['sglang.srt.layers.communicator'].patches"
    code = f"import sglang_commfix; print({patches})"
    printed = site.run(f"python -c {shlex.quote(code)}")
    return block(
        f">>> import sglang.srt.layers.communicator as c\n>>> c.__commfix__\n{printed}", "python"
    )


def _explain_fields(site: Installation) -> str:
    (first, *_) = load().patches
    explained = json.loads(site.run(f"sglang-commfix explain {first.id} --json"))
    return textwrap.fill(", ".join(f"`{name}`" for name in explained["patches"][0]) + ".", 100)


def _demo(site: Installation) -> str:
    return block(DEMO.read_text(encoding="utf-8") + f"{LOGGED}  {shortened(message(site))}")


def message(site: Installation) -> str:
    """Return what a process of a server logs, without the time."""
    return site.run(_LOG, SGLANG_COMMFIX="1").partition("sglang-commfix: ")[2]


def run_demo() -> tuple[str, str]:
    """Run ``make demo``, for a minute or two; return what it prints, and what a server has logged.

    The folder of the packages is called :data:`SITE` in it.
    """
    command = ["make", "--silent", "demo", f"PYTHON={sys.executable}"]
    printed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    table, _, logged = printed.stdout.lstrip("\n").partition(LOGGED)
    return table, re.sub(r" at \S+/sglang: ", f" at {SITE}/sglang: ", logged.strip())


SECTIONS: dict[str, tuple[str, Callable[[Installation], str]]] = {
    "healthy": ("0.5.17", _log_line),
    "status": ("0.5.17", _status),
    "export": ("0.5.11", _export),
    "demo": ("0.5.11", _demo),
    "log-line": ("0.5.11", _log_line),
    "fleet": ("0.5.11", _fleet),
    "explain-fields": ("0.5.11", _explain_fields),
    "in-process": ("0.5.11", _in_process),
    "lock": ("0.5.11", _lock),
    "lock-differs": ("0.5.11", _lock_differs),
    "series": ("0.5.11", _series),
}


def section(name: str) -> str:
    """Return what stands in the section of this name."""
    release, write = SECTIONS[name]
    with tempfile.TemporaryDirectory() as folder:
        return write(Installation(release, Path(folder)))


def render(text: str) -> str:
    """Return a page with its sections made anew."""

    def fill(found: re.Match[str]) -> str:
        name = found.group("name")
        return f"<!-- {name}: by tools/pages.py -->\n\n{section(name)}\n\n<!-- end -->"

    return _SECTION.sub(fill, text)


def sections_of(text: str) -> list[str]:
    """Return the names of the sections of a page."""
    return [found.group("name") for found in _SECTION.finditer(text)]


def main() -> int:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if not current")
    parser.add_argument("--demo", action="store_true", help="run `make demo` anew, for the README")
    arguments = parser.parse_args()
    if arguments.demo and not arguments.check:
        DEMO.write_text(run_demo()[0], encoding="utf-8")
    texts = {ROOT / name: render((ROOT / name).read_text(encoding="utf-8")) for name in PAGES}
    return bring_up_to_date(texts, check=arguments.check)


if __name__ == "__main__":
    sys.exit(main())
