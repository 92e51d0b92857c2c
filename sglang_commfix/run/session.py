"""Once in each process: lock → plan → patched modules → one line in the log → verification.

A failure leaves sglang as installed, and says so. Strict ends a server, but never who embeds one.
"""

from __future__ import annotations

import os
import sys
import threading
from importlib.machinery import ModuleSpec
from itertools import dropwhile
from pathlib import Path
from types import ModuleType

from wrapt import register_post_import_hook

from sglang_commfix import FINDER, OFF, SELECT, init
from sglang_commfix.errors import AlreadyImportedError, CommfixError, RefusedError
from sglang_commfix.files import ask, find_sglang
from sglang_commfix.run.host import LOCK, NOT_HOOKED, STRICT, log, read_settings, read_strict
from sglang_commfix.run.loader import MARK, PatchedLoader
from sglang_commfix.run.plan import Plan, make_plan


_WORDS = {"apply": "applying", "not-needed": "not needed:", "not-in-lock": "not in your lock:"}
_WORDS |= {"disabled": "switched off:", "refused": "REFUSED:"}
_guard = threading.RLock()
_current: Session | None = None
_embeds = False  # whether this process has called activate(), so that nothing is to end it


class Session:
    """The finder of one process: it knows what runs here, says so once, and verifies it.

    A hook that asks ``sys.meta_path`` again, from inside its own ``find_spec``, gets a patched spec
    to wrap. wrapt's finder is passed over, and its hooks are called by the patched loader: a third
    hook that assigns to a method of its loader would reach wrapt's proxy, and recurse.
    """

    def __init__(self, plan: Plan | None, *, ends: bool) -> None:
        self.plan = plan  # None: this package failed before it could decide
        self.modules = plan.modules if plan else {}
        self._ends = ends  # whether a failure ends this process
        self._ended = False
        self._announced = plan is None
        self._unverified = set(self.modules)
        self._to_patch = dict(self.modules)

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return a patched spec for a module of the plan, nothing for any other."""
        if name == "sglang.srt" or name.startswith("sglang.srt."):
            self.watch()
        module = self._to_patch.get(name)
        if module is None:
            return None
        behind = list(dropwhile(lambda finder: finder is not self, sys.meta_path))[1:]
        others = [f for f in behind if type(f).__module__ != "wrapt.importer"]
        spec = ask(others, name, path, target)
        if spec is None or spec.loader is None or hasattr(spec, MARK):
            return spec
        if spec.origin is None or Path(spec.origin).resolve() != module.path.resolve():
            where = f"{name} is about to be loaded from {spec.origin}"
            log().error(f"{where}, but the decision was made for {module.path}: not patched")
            del self._to_patch[name]
            return None  # and leave it to the other finders
        spec.loader = PatchedLoader(spec.loader, module)  # type: ignore[assignment]
        setattr(spec, MARK, module.patches)
        return spec

    def watch(self) -> None:
        """Say once what was decided, and verify what was imported without this being asked."""
        if self._ended:
            self.fail("this process was to end, and goes on")
        if self.plan and not self._announced:
            self._announced = True
            refused = self.plan.having("refused")
            for patch in refused:
                log().error(f"{patch['id']} is refused: {patch['reason']}")
            log().info(summary(self.plan))
            if refused and self._ends and not _embeds:
                count = f"{STRICT}=1 and {len(refused)} of the selected patches"
                self.fail(f"{count} cannot be applied: this process ends")
        for module in [sys.modules[name] for name in self._unverified & sys.modules.keys()]:
            if not getattr(module.__spec__, "_initializing", False):
                self.verify(module)

    def verify(self, module: ModuleType) -> None:
        """Check that ``module`` runs the text of the plan; say so if another hook took it over."""
        name = module.__name__
        self._unverified.discard(name)
        patches = self.modules[name].patches
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
        self._ended = self._ends and not _embeds
        if self._ended and threading.current_thread() is not threading.main_thread():
            os._exit(78)  # EX_CONFIG of sysexits.h
        if self._ended:
            raise SystemExit(78)


def summary(plan: Plan) -> str:
    """Tell in one line what a process runs with; the reasons are in ``sglang-commfix status``."""
    ids = {key: ", ".join(patch["id"] for patch in plan.having(key)) for key in _WORDS}
    ids["apply"] = ids["apply"] or "nothing"
    parts = [f"{words} {ids[key]}" for key, words in _WORDS.items() if ids[key]]
    if plan.unneeded:
        parts.append(f"none of the {len(plan.patches)} faults that this version knows is here")
    return f"sglang {plan.lock['sglang']} at {plan.sglang.path}: {'; '.join(parts)}"


def start() -> Session | None:
    """Return this process's session; start it if there is none, and there is an sglang."""
    with _guard:
        if _current is not None:
            _current.watch()  # only here again if it is to end the process
            return _current
        strict = True  # until the setting has been read
        try:
            strict = read_strict()
            settings = read_settings()
            if sglang := find_sglang():
                _install(Session(make_plan(sglang, settings), ends=strict))
            return _current
        except CommfixError as error:
            failure = f"{error}. Nothing is applied"
        except Exception as error:  # noqa: BLE001 - a guest must not break the host
            failure = f"an error of its own, {type(error).__name__}: {error}. Nothing is applied"
        _install(failed := Session(None, ends=strict))
        failed.fail(failure)
        return failed


def _install(session: Session) -> None:
    global _current  # noqa: PLW0603 - one session for each process is what is meant
    _current = session
    FINDER.closed = True
    if session.plan and session.plan.settings.level:
        log().setLevel(session.plan.settings.level)
    for name in session.modules:
        register_post_import_hook(session.verify, name)
    sys.meta_path.insert(0, session)


def verify() -> None:
    """Verify, when sglang's entry point for plug-ins is called, that the start-up hook did run."""
    select, strict = (os.environ.get(name, "").strip().lower() for name in (SELECT, STRICT))
    session = _current or Session(None, ends=strict not in OFF)
    if _current is None and select not in OFF and not _embeds:
        session.fail(f"{SELECT}={select} is set, but NOTHING IS PATCHED: {NOT_HOOKED}")
    for name in session.modules.keys() & sys.modules.keys():
        session.verify(sys.modules[name])


def add_shim() -> None:
    """Put the folder with the start-up shim in front of ``PYTHONPATH``, for other processes."""
    shim = str(Path(__file__).with_name("shim"))
    paths = [shim, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, dict.fromkeys(paths)))


def activate(
    select: str | None = None, *, strict: bool = False, lock: str | Path | None = None
) -> Plan:
    """Decide now, and patch sglang when it is imported, here and in every process started here.

    Call it before sglang is imported; twice does no harm. It returns what is decided. The arguments
    stand in for ``SGLANG_COMMFIX`` (``1`` by default), ``_STRICT`` and ``_LOCK``. Nothing that goes
    wrong later ends this process; those that it starts are servers, and end as strict says.

    Raises:
        RefusedError: strict, and a selected patch is refused.
        CommfixError: modules to be patched run already, or there is nothing to decide by.

    """
    global _embeds  # noqa: PLW0603 - as with the session
    from multiprocessing.process import current_process

    # A child that multiprocessing spawns runs its parent's program again, this call with it.
    spawned = SELECT in os.environ and getattr(current_process(), "_inheriting", False)
    _embeds = not spawned
    value = select or os.environ.get(SELECT, "")
    wanted = {SELECT: "1" if select is None and value.strip().lower() in OFF else value}
    wanted |= ({STRICT: "1"} if strict else {}) | ({LOCK: str(lock)} if lock else {})
    settings = read_settings({**os.environ, **wanted})
    with _guard:
        there = _current.plan if _current else None
        if there and there.settings != settings:
            asks = f"{SELECT}={there.settings.select} asks: other settings, other process"
            raise AlreadyImportedError(f"sglang is imported, and patched as {asks}")
        plan = there or make_plan(find_sglang(), settings)
        concerned = {module for patch in plan.patches for module in patch["modules"]}
        if not there and (late := sorted(concerned & sys.modules.keys())):
            remedy = "call sglang_commfix.activate() before sglang is imported"
            raise AlreadyImportedError(f"{', '.join(late)} runs already, unpatched: {remedy}")
        if settings.strict and not spawned and (refused := plan.having("refused")):
            FINDER.closed = True  # the host is told; what it imports from here on is as installed
            raise RefusedError("; ".join(f"{p['id']} is refused: {p['reason']}" for p in refused))
        if not there:
            os.environ.update(wanted)
            if FINDER not in sys.meta_path:  # this Python read no .pth file, nor will its children
                add_shim()
                init()
            _install(Session(plan, ends=settings.strict))
    return plan
