"""The environment variables, read once and checked whole."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sglang_commfix.errors import SettingsError
from sglang_commfix.register import DEFAULT_KINDS


if TYPE_CHECKING:
    from collections.abc import Mapping

    from sglang_commfix.register import Register

SELECT = "SGLANG_COMMFIX"
STRICT = "SGLANG_COMMFIX_STRICT"
ALLOW_UNKNOWN = "SGLANG_COMMFIX_ALLOW_UNKNOWN"
LOG = "SGLANG_COMMFIX_LOG"

OFF = frozenset({"", "0", "off"})
_ON = frozenset({"1", "on"})
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


@dataclass(frozen=True)
class Settings:
    """What the user asked for.

    Attributes:
        select: the value of ``SGLANG_COMMFIX`` that counts.
        selected: ids of the patches that may be applied.
        excluded: ids that the value takes out by name.
        strict: end the process where a selected patch is refused.
        allow_unknown: ids that may be applied to unrecognised source.
        log_level: name of the level of the logger ``sglang_commfix``; ``None``: as it is, which
            is INFO unless the host has set it.

    """

    select: str
    selected: frozenset[str]
    excluded: frozenset[str]
    strict: bool
    allow_unknown: frozenset[str]
    log_level: str | None

    @classmethod
    def from_environment(
        cls,
        register: Register,
        select: str | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> Settings:
        """Read the variables; ``select`` stands in for ``SGLANG_COMMFIX``.

        Raises:
            SettingsError: a value cannot be used; the text names it and what is known.

        """
        value = environ.get(SELECT, "") if select is None else select
        selected, excluded = parse_selection(value, register)
        return cls(
            select=value.strip(),
            selected=selected,
            excluded=excluded,
            strict=read_strict(environ),
            allow_unknown=_parse_ids(environ.get(ALLOW_UNKNOWN, ""), register),
            log_level=_read_log_level(environ),
        )


def parse_selection(value: str, register: Register) -> tuple[frozenset[str], frozenset[str]]:
    """Turn a value of ``SGLANG_COMMFIX`` into the ids it selects and those it takes out.

    A list of nothing but words with a leading ``-`` takes them out of the default selection.
    """
    words = list(filter(None, (word.strip().lower() for word in value.split(","))))
    if set(words) <= OFF:
        return frozenset(), frozenset()
    default = {patch.id for patch in register.patches if patch.kind in DEFAULT_KINDS}
    selected: set[str] = set()
    excluded: set[str] = set()
    if all(word.startswith("-") for word in words):
        selected |= default
    for word in words:
        if word in _ON:
            selected |= default
        elif word == "all":
            selected |= {patch.id for patch in register.patches}
        else:
            patches = register.matching(word.removeprefix("-"))
            if not patches:
                raise SettingsError(
                    f"{SELECT}={value!r}: {word!r} is unknown. "
                    f"Known are: 0, off, 1, on, all, {register.words}; a leading - takes one out"
                )
            (excluded if word.startswith("-") else selected).update(p.id for p in patches)
    selected = set(register.with_requirements(selected - excluded)) - excluded
    return frozenset(selected), frozenset(excluded)


def _parse_ids(value: str, register: Register) -> frozenset[str]:
    ids: set[str] = set()
    for word in filter(None, (word.strip().lower() for word in value.split(","))):
        patches = register.matching(word)
        if not patches:
            raise SettingsError(
                f"{ALLOW_UNKNOWN}={value!r}: {word!r} is unknown. Known are: {register.words}"
            )
        ids.update(patch.id for patch in patches)
    return frozenset(ids)


def read_strict(environ: Mapping[str, str] = os.environ) -> bool:
    """Read ``SGLANG_COMMFIX_STRICT`` alone, so that it counts where another value is unusable."""
    value = environ.get(STRICT, "").strip().lower()
    if value not in OFF | _ON:
        raise SettingsError(f"{STRICT}={environ[STRICT]!r} is neither 0 or off nor 1 or on")
    return value in _ON


def _read_log_level(environ: Mapping[str, str]) -> str | None:
    """Read ``SGLANG_COMMFIX_LOG``: the name of a level of :mod:`logging`."""
    value = environ.get(LOG, "").strip().upper()
    if not value:
        return None
    if value not in _LEVELS:
        raise SettingsError(f"{LOG}={environ[LOG]!r} is none of {', '.join(_LEVELS)}")
    return value
