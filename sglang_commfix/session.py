"""What happens once in each process that imports sglang with the variable set.

Start-up finder → plan → patch finder → one line in the log. Any failure of this package leaves
sglang as installed, and says so; under ``SGLANG_COMMFIX_STRICT=1`` it ends the process instead.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

from wrapt import register_post_import_hook

import sglang_commfix
from sglang_commfix import log
from sglang_commfix.errors import CommfixError
from sglang_commfix.installed import find_package, from_spec
from sglang_commfix.loader import MARK, PatchFinder
from sglang_commfix.plan import Plan, make_plan
from sglang_commfix.register import load
from sglang_commfix.settings import SELECT, STRICT, Settings, read_strict


if TYPE_CHECKING:
    from types import ModuleType

EXIT_STRICT = 78  # EX_CONFIG of sysexits.h

_LOCK = threading.RLock()


class Session:
    """The decisions of this process, and whether they have been announced.

    Attributes:
        plan: what was decided; ``None`` if this package failed before it could decide.
        failure: what went wrong, for a process that goes on unpatched.

    """

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.failure: str | None = None
        self.finder: PatchFinder | None = None
        self._strict = True  # until the setting has been read
        self._unverified: set[str] = set()
        self._announced = False
        self._ended = False

    def prepare(self) -> bool:
        """Decide; return ``False`` if there is no sglang to decide about (yet)."""
        try:
            self._strict = read_strict()
            settings = Settings.from_environment(load())
            if settings.log_level is not None:
                log.logger().setLevel(settings.log_level)
            spec = find_package()
            if spec is None:
                return False
            plan = make_plan(load(), from_spec(spec), settings)
            for name in plan.modules:
                register_post_import_hook(self.verify, name)
            self.plan = plan
            self._unverified = set(plan.modules)
            self.finder = PatchFinder(plan.modules, self.watch)
        except CommfixError as error:
            self._fail(f"{error}. Nothing is applied")
        except Exception as error:  # noqa: BLE001 - a guest must not break the host
            self._fail(
                f"an error of its own, {type(error).__name__}: {error}. Nothing is applied; "
                f"unset {SELECT} to silence this"
            )
        return True

    def verify(self, module: ModuleType) -> None:
        """Check that ``module`` runs the text of the plan; say so if another hook took it over."""
        if self.plan is None or module.__name__ not in self.plan.modules:
            return
        self._unverified.discard(module.__name__)
        expected = self.plan.modules[module.__name__].patches
        if module.__dict__.get(MARK) == expected:
            log.logger().debug("%s runs with %s", module.__name__, ", ".join(expected))
            return
        loader = getattr(module.__spec__, "loader", None)
        self._fail(
            f"{module.__name__} runs UNPATCHED: it was loaded by {type(loader).__name__}, another "
            f"import hook, without {', '.join(expected)}. Answers may be wrong: remove that hook, "
            "or export the patches with `sglang-commfix export` and apply them to the files"
        )

    def watch(self) -> None:
        """Say what was decided, once, and check what has been imported since the last call.

        Called whenever a module of sglang's runtime is about to be imported. A hook in front of
        all others can take over a module without this package, or wrapt, hearing of it; the next
        import shows.
        """
        if self._ended:
            end_process()
        self._announce()
        for name in list(self._unverified):
            module = sys.modules.get(name)
            if module is not None and not getattr(module.__spec__, "_initializing", False):
                self.verify(module)

    def _announce(self) -> None:
        if self._announced or self.plan is None:
            return
        self._announced = True
        refused = self.plan.having("refused")
        for decision in refused:
            log.logger().error("%s is refused: %s", decision.patch.id, decision.reason)
        log.logger().info(summary(self.plan))
        if refused and self._strict:
            self._fail(
                f"{STRICT}=1 and {len(refused)} of the selected patches cannot be applied: "
                "this process ends"
            )

    def _fail(self, message: str) -> None:
        self.failure = message
        log.logger().error("%s", message)
        if self._strict:
            self._ended = True
            end_process()


def summary(plan: Plan) -> str:
    """Tell in one line what a process runs with; the reasons are in ``sglang-commfix status``."""
    applied = [decision.patch.id for decision in plan.having("apply")]
    parts = [f"applying {', '.join(applied)}" if applied else "applying nothing"]
    for verdict, words in (
        ("not-needed", "not needed"),
        ("disabled", "switched off"),
        ("refused", "REFUSED"),
    ):
        ids = [decision.patch.id for decision in plan.having(verdict)]
        if ids:
            parts.append(f"{words}: {', '.join(ids)}")
    if plan.uninstall:
        parts.append("nothing is needed any more: pip uninstall sglang-commfix")
    return f"sglang {plan.sglang.version} at {plan.sglang.path}: {'; '.join(parts)}"


def end_process() -> NoReturn:
    """End this process with status 78, from whichever thread."""
    sys.stderr.flush()
    if threading.current_thread() is threading.main_thread():
        raise SystemExit(EXIT_STRICT)
    os._exit(EXIT_STRICT)


_current: Session | None = None


def current() -> Session | None:
    """Return this process's session, if sglang has been imported with the variable set."""
    return _current


def start() -> PatchFinder | None:
    """Start this process's session, and put its finder before the start-up finder."""
    global _current  # noqa: PLW0603 - one session for each process is what is meant
    with _LOCK:
        if _current is not None:
            _current.watch()  # only here again if it is to end the process
            return _current.finder
        session = Session()
        try:
            if not session.prepare():
                return None
        finally:
            if session.plan is not None or session.failure is not None:
                _current = session
        if session.finder is not None:
            sys.meta_path.insert(0, session.finder)
        sglang_commfix.FINDER.closed = True
        return session.finder
