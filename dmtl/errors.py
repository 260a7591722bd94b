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
    """A checkpoint is damaged, foreign, or belongs to another configuration. The message names the file."""


class WorkerError(DmtlError, RuntimeError):
    """A process that reads data has died: it was killed, or shared memory is too small."""


class ExportError(DmtlError, RuntimeError):
    """An exported file does not give what the model gives. The message names the file, which was not
    written."""


class BackendError(DmtlError, NotImplementedError):
    """No backend can serve a call, or the one asked for by name cannot. The message has every candidate's
    reasons."""


def nearest(name: object, known: Iterable[object]) -> str | None:
    """The known name that `name` was probably meant to be, for the hint in a message."""
    return next(iter(get_close_matches(str(name), [str(k) for k in known], 1)), None)


def did_you_mean(name: object, known: Iterable[object], before: str = "; ", after: str = "") -> str:
    """The hint "did you mean 'semseg'?" between `before` and `after`; "" where no known name is near."""
    near = nearest(name, known)
    return f"{before}did you mean {near!r}?{after}" if near else ""


def one_line(error: object) -> str:
    """What an error says, to be quoted in a message: at most 160 printable characters of one line, since it
    may itself quote a damaged file; its class where it says nothing."""
    text = " ".join((getattr(error, "strerror", None) or str(error)).split())[:160] or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)
