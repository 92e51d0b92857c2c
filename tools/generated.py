"""Files that tools write: brought up to date, or checked."""

from __future__ import annotations

import gc
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from textwrap import TextWrapper
from typing import TYPE_CHECKING, TypeVar

from sglang_commfix.engine.errors import RegisterError
from sglang_commfix.engine.register import load_folder


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from sglang_commfix.engine.register import Register

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")
_WIDTH = 100
_ITEM = re.compile(r"(?: *)(?:- |\d+\. )")
# What is not broken: code, and the text of a link with what it leads to.
_WHOLE = re.compile(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)|\]\([^)]*\)", re.DOTALL)


def read_register(folder: Path, *, complete: bool = True) -> Register:
    """Return the register; end the run, and say why, if it cannot be used."""
    try:
        return load_folder(folder, complete=complete)
    except RegisterError as error:
        raise SystemExit(str(error)) from None


def each_of(
    things: Mapping[str, _Given], work: Callable[[_Given], _Made]
) -> Iterator[tuple[str, _Made]]:
    """Do ``work`` on each of the things, on all cores; show how far it is."""
    # Syntax trees have no cycles, and to look for some takes half as long as all else.
    with ProcessPoolExecutor(initializer=gc.disable) as pool:
        for number, (name, made) in enumerate(
            zip(things, pool.map(work, things.values()), strict=True), 1
        ):
            print(f"\r{number}/{len(things)} {name:12}", end="", file=sys.stderr, flush=True)
            yield name, made
    print(file=sys.stderr)


def wrapped(page: str) -> str:
    """Return a page of Markdown with its prose at one width; tables, code and headings as is."""
    blocks, fenced = [], False
    for block in page.split("\n\n"):
        as_is = fenced or "```" in block or block.lstrip("\n").startswith(("|", "#", "<"))
        fenced ^= block.count("```") % 2 == 1
        blocks.append(block if as_is else _filled(block))
    return "\n\n".join(blocks)


def _filled(block: str) -> str:
    """Fill a paragraph, or each item of a list; what comes before the items is a paragraph."""
    begin = re.match(r"\n*", block)
    lines = []
    for part in re.split(r"\n(?=(?: *)(?:- |\d+\. |\|))", block.strip("\n")):
        item = _ITEM.match(part)
        indent = " " * (item.end() if item else 0)
        fill = TextWrapper(
            _WIDTH,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        ).fill
        kept = _WHOLE.sub(lambda found: re.sub(r"\s+", "\0", found[0]), part)
        one = part if part.startswith("|") else fill(re.sub(r"\n\s*", " ", kept)).replace("\0", " ")
        lines.append(one)
    return (begin[0] if begin else "") + "\n".join(lines) + ("\n" if block.endswith("\n") else "")


def bring_up_to_date(texts: Mapping[Path, str], *, check: bool) -> int:
    """Write each file whose text is not current, or with ``check`` name it; return the status."""
    stale = [
        file
        for file, text in texts.items()
        if not file.is_file() or file.read_text(encoding="utf-8") != text
    ]
    for file in stale:
        print(f"{'stale' if check else 'written'}: {file}")
        if not check:
            file.write_text(texts[file], encoding="utf-8")
    return 1 if check and stale else 0
