"""What can be wrong, one class for each kind of input."""

from __future__ import annotations


class CommfixError(Exception):
    """Base of every error of this package. The text says what was found, where, and what to do."""


class SettingsError(CommfixError):
    """An environment variable or an option has a value that cannot be used."""


class RegisterError(CommfixError):
    """The register (``patches/``) contradicts itself: a damaged or incomplete installation."""


class SglangNotFoundError(CommfixError):
    """No sglang where one was looked for."""


class SourceError(CommfixError):
    """A source file cannot be read, decoded or parsed."""


class AnchorError(CommfixError):
    """An edit does not match its scope exactly once, or its text cannot be placed safely."""


class AlreadyImportedError(CommfixError):
    """sglang's modules run already, so that their source can no longer be replaced."""
