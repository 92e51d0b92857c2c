"""The lock: what is decided about an sglang tree, and the text that will run there, as JSON has it.

The engine makes locks: the shipped ones when this package is built, a user's own by the command
``sglang-commfix lock``. A server reads one and selects from it. These are types, for people, mypy
and what checks a user's own lock; a server of a published release does not load them.
"""

from typing import Literal, TypedDict


SCHEMA = 1


class Splice(TypedDict):
    """One edit of one file. Offsets are bytes in the genuine file."""

    module: str
    scope: str  # qualified name of the class or function; empty: the module itself
    operation: str  # replace, before, after, append
    line: int  # of the scope, from 1; for append the file's last line
    at: int  # the line that is edited
    start: int  # what is replaced, up to `stop`; nothing, where they are equal
    stop: int
    rank: int  # what comes first where two splices meet
    anchor: list[int]  # from and to: what no other splice may replace
    replaces: str  # short_digest() of what is replaced
    encoding: str  # of the file
    text: list[str]  # what takes its place, line by line


class Decision(TypedDict):
    """What is decided about one entry of the register; words and numbers are the entry's."""

    id: str
    pr: int | None
    kind: str  # correctness, stability, performance, feature
    title: str
    fixed_in: str | None  # None: no published release has a fix
    fixes: list[int]  # pull requests whose published version has the fault
    requires: list[str]
    conflicts: list[str]
    collective: bool  # it changes which collectives a rank enters, over what, or how large
    modules: dict[str, str | None]  # it stands on: SHA-256 of each file, None: no such module
    # `disabled` comes with a selection; `not-in-lock`: a user's own lock does not know the entry.
    decision: Literal["apply", "not-needed", "refused", "disabled", "not-in-lock"]
    reason: str
    needed: bool | None  # whether the tree has the fault; None: unknown
    found: dict[str, str | None]  # the fingerprint of each target that could be read
    splices: list[Splice]  # empty unless the entry can be applied


class Lock(TypedDict):
    """The decisions about one tree, in the order in which their splices are made."""

    schema: int
    made_by: str  # version of sglang-commfix
    sglang: str  # what the tree calls itself
    allowed: list[str]  # ids that its owner let through where the guard refuses
    conflicts: list[list[str]]  # two entries that touch one statement, and the reason
    decisions: list[Decision]  # in a shipped lock, one for each release that it covers
