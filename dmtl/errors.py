"""Errors that a user can fix. The command line prints them as one line, without a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class DmtlError(Exception):
    """Base of every error that `dmtl` raises about its input."""


class DataError(DmtlError, ValueError):
    """A data set, an image or a label is not what its format promises. The message names the file."""


class ConfigError(DmtlError, ValueError):
    """A configuration has an unknown key or a value that cannot work. The message names the key."""


class CheckpointError(DmtlError, ValueError):
    """A file is damaged, not a checkpoint of dmtl, or belongs to another configuration.

    The message names the file.
    """


class WorkerError(DmtlError, RuntimeError):
    """A process that reads data has died: it was killed, or shared memory is too small."""


class ExportError(DmtlError, RuntimeError):
    """An exported file does not compute the same results as the model.

    The message names the file, which was not written.
    """


class BackendError(DmtlError, NotImplementedError):
    """No backend can serve a call, or the requested backend cannot.

    The message has the reasons against every candidate.
    """


def nearest(name: object, known: Iterable[object]) -> str | None:
    """Return the known name nearest to `name`, for a hint."""
    return next(iter(get_close_matches(str(name), [str(k) for k in known], 1)), None)


def did_you_mean(name: object, known: Iterable[object], before: str = "; ", after: str = "") -> str:
    """Return the hint "did you mean 'semseg'?" between `before` and `after`; "" if no known name is near."""
    near = nearest(name, known)
    return f"{before}did you mean {near!r}?{after}" if near else ""


def one_line(error: object) -> str:
    """Return the text of an error for use in a message; its class if it has no text.

    The result is one line of at most 160 printable characters, because an error may quote a damaged file.
    """
    text = " ".join((getattr(error, "strerror", None) or str(error)).split())[:160] or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)
