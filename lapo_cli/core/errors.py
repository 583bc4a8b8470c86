"""The exceptions that users can cause.

Every message is one sentence that says what happened, followed by what to do next. The CLI shows the message
alone and exits with ``exit_code``; any other exception is a defect of the tool.
"""

import pickle


class LapoError(Exception):
    """Something the user can correct; base of the family. Exit code 1: the work failed."""

    exit_code = 1


class UsageError(LapoError):
    """The request itself cannot be carried out as written. Exit code 2."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration key, type or value that is not accepted."""


class UnknownNameError(UsageError):
    """A name that nothing is registered under: of a game, a source, a quantizer and so on."""


class PluginError(LapoError):
    """An addition to lapo that cannot be loaded, or that takes a name that is taken."""


class DeviceError(UsageError):
    """A compute device that this machine or this build of PyTorch does not have."""


class RunDirError(UsageError):
    """A path that is not a run directory, or one that another version or another process holds."""


class MissingInputError(UsageError):
    """Data or an earlier stage that the requested work needs is not there."""


class WorkerKilledError(LapoError):
    """A process was killed by a signal. Exit code 137, as if it had been this one, so that schedulers try again."""

    exit_code = 137


class CorruptDataError(LapoError):
    """A file that is truncated, altered or of the wrong shape."""


class BusyError(LapoError):
    """Another process is at work on the same files."""


class DownloadError(LapoError):
    """Demonstrations could not be fetched; what arrived so far is kept."""


class DiskFullError(LapoError):
    """There is not enough free disk; what was finished is kept."""


class EnvironmentUnavailableError(LapoError):
    """An environment cannot be made here: it has no such platform or package, or there is none for this data."""


class BrokenEnvironmentError(LapoError):
    """An environment that fails, or that gives something else than an environment has to give."""


class TrainingDivergedError(LapoError):
    """A loss became NaN or infinite; the last good checkpoint is kept."""


class OutputError(LapoError):
    """The result of a command cannot be written to standard output."""


def one_line(text: str, most: int = 1000) -> str:
    """``text`` on one line of at most ``most`` printable characters, shortened in the middle."""
    if len(text) > 4 * most:
        text = f"{text[: 2 * most]} … {text[-2 * most :]}"
    line = "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))
    if len(line) > most:
        half = most // 2 - 2
        line = f"{line[:half]} … {line[-half:]}"
    return line


def shortened(text: str) -> str:
    """:func:`one_line` of what a message quotes from a file or from the command line: at most 80 characters."""
    return one_line(text, 80)


def describe(error: BaseException) -> str:
    """Type and message of an exception that is not one of lapo's, without a full stop."""
    return f"{type(error).__name__}: {one_line(str(error), 400)}".rstrip(".: ")


def sendable(error: Exception) -> Exception:
    """This exception, or one with the same message where it cannot be pickled or read back."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return LapoError(str(error)) if isinstance(error, LapoError) else RuntimeError(describe(error))
    return error
