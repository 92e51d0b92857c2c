"""What runs under an edited scope's name, and whether it is, or leads to, the edited code."""

from __future__ import annotations

import gc
import sys
from collections import deque
from types import CodeType, FunctionType, ModuleType
from typing import Any


LIMIT = 100_000  # objects that are looked at for one name
_CALLED = frozenset({"__call__", "__get__"})  # what an object does in the place of a function
_CODE = (FunctionType, staticmethod, classmethod, property)
Lines = dict[str, set[tuple[str, int]]]  # of a scope: the functions that it may name


def lines_of(code: CodeType, scopes: tuple[str, ...]) -> Lines:
    """Return name and first line of each function in ``code`` that one of ``scopes`` names.

    A class stands for the functions in its body. The module itself is not among ``scopes``.
    """
    found = {}
    for scope in scopes:
        named = [code]
        for part in scope.split("."):
            named = [one for outer in named for one in _inside(outer) if one.co_name == part]
        classes = [one for one in named if not one.co_flags & 1]  # inspect.CO_OPTIMIZED
        functions = [f for one in classes for f in _inside(one)] if classes else named
        found[scope] = {(one.co_name, one.co_firstlineno) for one in functions}
    return found


def _inside(code: CodeType) -> list[CodeType]:
    return [one for one in code.co_consts if isinstance(one, CodeType)]


def stray(module: ModuleType, file: str, wanted: Lines) -> tuple[str, Any] | None:
    """Return the scope that edited code is not under, and what is; ``None``: there is none.

    It looks through whatever holds the edited function: closures, defaults, attributes, constants,
    what a function names in its globals, in modules and in classes, partial objects and other
    callables, and operators that PyTorch has registered under the function's name. A name that is
    not bound, as under a condition that is not met here, is no error.

    Args:
        module: the module that was edited.
        file: the name under which its edited text was compiled.
        wanted: its scopes, as :func:`lines_of` has them.

    """
    for scope, lines in wanted.items():
        found: Any = module
        bodies: tuple[Any, ...] = (module,)
        missing = False
        for part in scope.split("."):
            bodies = getattr(found, "__mro__", (found,))
            there = [body for body in bodies if part in getattr(body, "__dict__", ())]
            if missing := not there:
                break
            found = vars(there[0])[part]
        if missing and module.__name__ in {
            getattr(found, w, 0) for w in ("__name__", "__module__")
        }:
            continue
        roots = [found]
        if isinstance(found, type):
            roots, bodies = [v for v in vars(found).values() if isinstance(v, _CODE)], found.__mro__
        if lines and roots and not _reaches(roots, bodies, file, lines):
            return scope, found
    return None


def _reaches(
    roots: list[Any], bodies: tuple[Any, ...], file: str, lines: set[tuple[str, int]]
) -> bool:
    names = {name for name, _ in lines}
    seen: dict[Any, Any] = {}  # holds each object, so that no other takes its id
    # Each with the words that may lead on, and with the modules and classes that it was found in:
    # two at most, as in package.module.function.
    queue: deque[Any] = deque((root, _CALLED, ()) for root in roots)
    while queue and len(seen) < LIMIT:
        one, words, inside = queue.popleft()
        kind = type(one)  # an object may refuse to tell its class, or lie about it
        named = issubclass(kind, type | ModuleType)  # what it holds is found by names alone
        key = (id(one), id(words) if named else 0)
        if key in seen or len(inside) > 2 or issubclass(kind, str | bytes | int):
            continue
        seen[key] = one, words
        if named:
            queue += [(it, words, (*inside, one)) for k, it in [*vars(one).items()] if k in words]
            continue
        if kind is not FunctionType:
            if str(kind.__module__).startswith("torch.") and getattr(one, "__name__", 0) in names:
                return True
            queue += [(it, words, inside) for it in gc.get_referents(one)]
            continue
        here = one.__code__
        if here.co_filename == file and (here.co_name, here.co_firstlineno) in lines:
            return True
        codes = [here]
        for code in codes:
            codes += _inside(code)
        words = {w for code in codes for w in (*code.co_names, *code.co_consts) if type(w) is str}
        spaces = (sys.modules, one.__globals__, *map(vars, (*bodies, *inside)))
        found = [known[word] for known in spaces for word in words if word in known]
        # What a wrapper says it wraps, it need not call: sglang's plug-ins may replace a function.
        found += [value for key, value in vars(one).items() if key != "__wrapped__" or key in words]
        found += [one.__closure__, one.__defaults__, one.__kwdefaults__]
        found += [code.co_consts for code in codes]  # ddtrace keeps the original there
        queue += [(it, words, inside) for it in found]
    return False
