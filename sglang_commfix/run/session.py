"""Once in each process: lock → plan → patched modules → one line in the log → verification.

A failure of this package leaves sglang as installed, and says so. Under ``SGLANG_COMMFIX_STRICT=1``
it ends a process that was started with the variable, never one that embeds sglang.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import MutableMapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from wrapt import register_post_import_hook

from sglang_commfix import FINDER, OFF, SELECT, init
from sglang_commfix.errors import (
    AlreadyImportedError,
    CommfixError,
    RefusedError,
    SglangNotFoundError,
)
from sglang_commfix.installed import find_elsewhere, find_sglang
from sglang_commfix.run.host import LOCK, NOT_HOOKED, STRICT, log, read_settings, read_strict
from sglang_commfix.run.loader import MARK, PatchedLoader
from sglang_commfix.run.plan import Plan, make_plan


_WORDS = {"apply": "applying", "not-needed": "not needed:", "not-in-lock": "not in your lock:"}
_WORDS |= {"disabled": "switched off:", "refused": "REFUSED:"}
_guard = threading.RLock()
_current: Session | None = None


class Session:
    """The finder of one process: it knows what runs here, says so once, and verifies it.

    Other import hooks keep working. One that asks all of ``sys.meta_path`` again, from inside its
    own ``find_spec``, gets a patched spec to wrap. wrapt's finder is passed over, and the patched
    loader calls its hooks: a third hook that assigns to a method of its loader would otherwise
    reach wrapt's proxy, and recurse for ever.
    """

    def __init__(self, plan: Plan | None, *, ends: bool) -> None:
        self.plan = plan  # None: this package failed before it could decide
        self._ends = ends  # whether a failure ends this process
        self._ended = False
        self._announced = plan is None
        self._unverified = set(plan.modules) if plan else set()
        self._elsewhere: set[str] = set()

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        """Return a patched spec for a module of the plan, nothing for any other."""
        if name == "sglang.srt" or name.startswith("sglang.srt."):
            self.watch()
        module = self.plan.modules.get(name) if self.plan else None
        if module is None or name in self._elsewhere:
            return None
        hooks = [f for f in sys.meta_path if type(f).__module__ == "wrapt.importer"]
        spec = find_elsewhere(name, path, target, skip=[self, *hooks])
        if spec is None or spec.loader is None or hasattr(spec, MARK):
            return spec
        if spec.origin is None or Path(spec.origin).resolve() != module.path.resolve():
            where = f"{name} is about to be loaded from {spec.origin}"
            log().error(f"{where}, but the decision was made for {module.path}: not patched")
            self._elsewhere.add(name)
            return None  # and leave it to the other finders
        loader: Any = PatchedLoader(spec.loader, module)  # by its methods, not by its base class
        spec.loader = loader
        setattr(spec, MARK, module.patches)
        return spec

    def watch(self) -> None:
        """Say once what was decided, and check what was imported since the last call.

        Called when a module of sglang's runtime is about to be imported. A hook in front of all
        others can take a module over without this package, or wrapt, being asked; this shows it.
        """
        if self._ended:
            self.end()
        if self.plan and not self._announced:
            self._announced = True
            refused = self.plan.having("refused")
            for patch in refused:
                log().error(f"{patch['id']} is refused: {patch['reason']}")
            log().info(summary(self.plan))
            if refused and self._ends:
                count = f"{STRICT}=1 and {len(refused)} of the selected patches"
                self.fail(f"{count} cannot be applied: this process ends")
        for name in list(self._unverified):
            module = sys.modules.get(name)
            if module is not None and not getattr(module.__spec__, "_initializing", False):
                self.verify(module)

    def verify(self, module: ModuleType) -> None:
        """Check that ``module`` runs the text of the plan; say so if another hook took it over."""
        name = module.__name__
        self._unverified.discard(name)
        patches = self.plan.modules[name].patches if self.plan else ()
        if module.__dict__.get(MARK) == patches:
            log().debug(f"{name} runs with {', '.join(patches)}")
            return
        loader = type(getattr(module.__spec__, "loader", None)).__name__
        self.fail(
            f"{name} runs UNPATCHED: it was loaded by {loader}, another import hook, without "
            f"{', '.join(patches)}. Answers may be wrong: remove that hook, or export the patches "
            "with `sglang-commfix export` and apply them to the files"
        )

    def fail(self, message: str) -> None:
        """Say what went wrong; under strict, end the process."""
        log().error(message)
        if self._ends:
            self.end()

    def end(self) -> None:
        """End this process with status 78 (EX_CONFIG of sysexits.h), from whichever thread."""
        self._ended = True
        sys.stderr.flush()
        if threading.current_thread() is threading.main_thread():
            raise SystemExit(78)
        os._exit(78)


def summary(plan: Plan) -> str:
    """Tell in one line what a process runs with; the reasons are in ``sglang-commfix status``."""
    ids = {key: ", ".join(patch["id"] for patch in plan.having(key)) for key in _WORDS}
    parts = [f"{words} {ids[key]}" for key, words in _WORDS.items() if ids[key]]
    parts = parts if ids["apply"] else ["applying nothing", *parts]
    if plan.unneeded:
        parts.append(f"none of the {len(plan.patches)} faults that this version knows is here")
    return f"sglang {plan.sglang.version} at {plan.sglang.path}: {'; '.join(parts)}"


def start() -> Session | None:
    """Return this process's session; start it if there is none, and there is an sglang."""
    with _guard:
        if _current is None:
            _begin()
        else:
            _current.watch()  # only here again if it is to end the process
        return _current


def _begin() -> None:
    strict = True  # until the setting has been read
    try:
        strict = read_strict()
        settings = read_settings()
        if sglang := find_sglang():
            _install(Session(make_plan(sglang, settings), ends=strict))
        return
    except CommfixError as error:
        failure = f"{error}. Nothing is applied"
    except Exception as error:  # noqa: BLE001 - a guest must not break the host
        failure = f"an error of its own, {type(error).__name__}: {error}. Nothing is applied; "
        failure += f"unset {SELECT} to silence this"
    _install(Session(None, ends=strict))
    FINDER.closed = not strict  # a process that swallows its end comes here again
    Session(None, ends=strict).fail(failure)


def _install(session: Session) -> None:
    """Make ``session`` that of this process, before all other finders."""
    global _current  # noqa: PLW0603 - one session for each process is what is meant
    _current = session
    if session.plan:
        FINDER.closed = True
        log().setLevel(session.plan.settings.level or log().level)
        for name in session.plan.modules:
            register_post_import_hook(session.verify, name)
        sys.meta_path.insert(0, session)


def verify() -> None:
    """Check that this process runs what ``SGLANG_COMMFIX`` asks for; say so loudly if not.

    The entry point ``sglang.srt.plugins`` (sglang 0.5.11 and later). sglang calls it after the
    modules to be patched are imported: too late to patch, but not to say that no hook ran.
    """
    if _current is None and os.environ.get(SELECT, "").strip().lower() not in OFF:
        strict = os.environ.get(STRICT, "").strip().lower() not in OFF
        message = f"{SELECT}={os.environ[SELECT]} is set, but NOTHING IS PATCHED: {NOT_HOOKED}"
        Session(None, ends=strict).fail(message)
    for name in _current.plan.modules if _current and _current.plan else ():
        if _current and name in sys.modules:
            _current.verify(sys.modules[name])


def add_shim(environ: MutableMapping[str, str]) -> None:
    """Put the folder with the start-up shim in front of ``PYTHONPATH``."""
    paths = [
        str(Path(__file__).with_name("shim")),
        *environ.get("PYTHONPATH", "").split(os.pathsep),
    ]
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, dict.fromkeys(paths)))


def activate(
    select: str | None = None, *, strict: bool = False, lock: str | Path | None = None
) -> Plan:
    """Decide now, and patch sglang when it is imported, here and in every process started here.

    Call it before sglang is imported; twice does no harm. The arguments stand in for the variables
    ``SGLANG_COMMFIX`` (``1`` by default), ``_STRICT`` and ``_LOCK``. Nothing that goes wrong later
    ends this process. The processes that it starts are servers: strict ends those.

    Raises:
        RefusedError: strict, and a selected patch is refused.
        AlreadyImportedError: modules that a patch has to do with run already.
        CommfixError: there is nothing to decide by. In each case nothing has been changed.

    """
    value = select or os.environ.get(SELECT, "")
    wanted = {SELECT: "1" if select is None and value.strip().lower() in OFF else value}
    wanted |= ({STRICT: "1"} if strict else {}) | ({LOCK: str(lock)} if lock else {})
    settings = read_settings({**os.environ, **wanted})
    with _guard:
        if _current is not None and _current.plan:
            if _current.plan.settings == settings:
                return _current.plan
            raise AlreadyImportedError(
                f"sglang is imported, and patched as {SELECT}={_current.plan.settings.select} "
                "asks: call activate() with other settings in a new process, before importing it"
            )
        if (sglang := find_sglang()) is None:
            raise SglangNotFoundError(f"no sglang is installed for {sys.executable}")
        plan = make_plan(sglang, settings)
        concerned = {module for patch in plan.patches for module in patch["modules"]}
        if late := sorted(concerned & sys.modules.keys()):
            raise AlreadyImportedError(
                f"{', '.join(late)} runs already, unpatched: call sglang_commfix.activate() before "
                f"sglang is imported, or set {SELECT} before Python starts"
            )
        if settings.strict and (refused := plan.having("refused")):
            FINDER.closed = True  # the host is told; what it imports from here on is as installed
            raise RefusedError("; ".join(f"{p['id']} is refused: {p['reason']}" for p in refused))
        os.environ.update(wanted)
        if FINDER not in sys.meta_path:  # this Python read no .pth file, nor will its children
            add_shim(os.environ)
            init()
        _install(Session(plan, ends=False))
    return plan
