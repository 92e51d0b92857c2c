"""What can be wrong, one class for each kind of input."""


class CommfixError(Exception):
    """Base of every error of this package. The text says what was found, where, and what to do."""


class SettingsError(CommfixError):
    """An environment variable or an option has a value that cannot be used."""


class SglangNotFoundError(CommfixError):
    """No sglang where one was looked for."""


class LockError(CommfixError):
    """A lock cannot be read, or is not that of the tree it is used for."""


class AlreadyImportedError(CommfixError):
    """sglang's modules run already, so that their source can no longer be replaced."""


class RefusedError(CommfixError):
    """Strict was asked for, and a selected patch cannot be applied."""


class MixedFleetError(CommfixError):
    """Ranks of one model run different patches, which change the collectives that a rank enters."""
