"""What can be wrong with the register, or with source that is looked at."""

from __future__ import annotations

from sglang_commfix.errors import CommfixError


class RegisterError(CommfixError):
    """The register (``patches/``) contradicts itself: a damaged or incomplete installation."""


class SourceError(CommfixError):
    """A source file cannot be read, decoded or parsed."""


class AnchorError(CommfixError):
    """An edit does not match its scope exactly once, or its text cannot be placed safely."""
