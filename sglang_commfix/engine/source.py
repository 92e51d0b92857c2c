"""A Python source file as bytes, as text and as lines, without losing a byte of it."""

from __future__ import annotations

import io
import re
import tokenize
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sglang_commfix.engine.errors import SourceError


if TYPE_CHECKING:
    import ast
    from pathlib import Path

# Where Python itself ends a line. str.splitlines() knows eight more places.
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


@dataclass(frozen=True)
class Source:
    """One file, as it was read.

    ``text`` keeps the file's own line ends; positions of the syntax tree (lines from 1, columns in
    UTF-8 bytes) are turned into offsets of ``text`` by :meth:`start` and :meth:`end`.
    """

    path: Path
    raw: bytes
    encoding: str
    text: str
    lines: tuple[str, ...] = field(repr=False)
    _offsets: tuple[int, ...] = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> Source:
        """Read ``path``; raise :class:`SourceError` if it is not readable Python text."""
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
        return cls.from_bytes(path, raw)

    @classmethod
    def from_bytes(cls, path: Path, raw: bytes) -> Source:
        """Decode ``raw`` by its byte-order mark or encoding cookie, UTF-8 without either."""
        try:
            encoding = tokenize.detect_encoding(io.BytesIO(raw).readline)[0]
            text = raw.decode(encoding)
            lossless = text.encode(encoding) == raw
        except Exception as error:  # a codec is anybody's code, and raises what it likes
            raise SourceError(f"{path} cannot be decoded: {error}") from error
        if not lossless:
            raise SourceError(f"{path}: decoding as {encoding} loses bytes")
        return cls._from_text(path, raw, encoding, text)

    @classmethod
    def _from_text(cls, path: Path, raw: bytes, encoding: str, text: str) -> Source:
        lines = tuple(_LINE.findall(text))
        offsets = [0]
        for line in lines:
            offsets.append(offsets[-1] + len(line))
        return cls(path, raw, encoding, text, lines, tuple(offsets))

    def with_text(self, text: str) -> Source:
        """Return the same file with another text, in the same encoding."""
        try:
            raw = text.encode(self.encoding)
        except UnicodeEncodeError as error:
            raise SourceError(f"{self.path}: {error}") from error
        return self._from_text(self.path, raw, self.encoding, text)

    def offset_in_bytes(self, offset: int) -> int:
        """Turn an offset of :attr:`text` into one of the file, a byte-order mark counted."""
        return len(self.text[:offset].encode(self.encoding))

    @property
    def newline(self) -> str:
        """The line end that the file uses first, a line feed if it has none."""
        first = self.lines[0] if self.lines else ""
        return first[len(first.rstrip("\r\n")) :] or "\n"

    def line_offset(self, lineno: int) -> int:
        """Offset of the first character of line ``lineno`` (from 1; one past the last: the end)."""
        return self._offsets[lineno - 1]

    def lineno(self, offset: int) -> int:
        """Turn an offset into the number of its line (from 1; one past the last: the end)."""
        return bisect_right(self._offsets, offset)

    def column(self, lineno: int, utf8_column: int) -> int:
        """Turn a column in UTF-8 bytes into one in characters."""
        line = self.lines[lineno - 1]
        if line.isascii():
            return utf8_column
        return len(line.encode("utf-8")[:utf8_column].decode("utf-8"))

    def start(self, node: ast.stmt) -> int:
        """Offset of a statement's first character, its decorators not counted."""
        return self.line_offset(node.lineno) + self.column(node.lineno, node.col_offset)

    def line_end(self, node: ast.stmt) -> int:
        """Offset just behind the last line that a statement stands on."""
        return self.line_offset((node.end_lineno or node.lineno) + 1)

    def end(self, node: ast.stmt) -> int:
        """Offset just behind a statement's last character."""
        if node.end_lineno is None or node.end_col_offset is None:
            raise SourceError(f"{self.path}:{node.lineno}: the parser gave no end position")
        return self.line_offset(node.end_lineno) + self.column(node.end_lineno, node.end_col_offset)
