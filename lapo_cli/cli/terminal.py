"""What a command prints and where: results on stdout, everything else on stderr, and an exit code at the end."""

import contextlib
import errno
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import IO, Any, TextIO, cast

import typer
from rich.console import Console, RenderableType
from rich.text import Text
from typer.core import TyperGroup
from typer.exceptions import TyperException

from lapo_cli.cli.options import Output
from lapo_cli.cli.render import progress_on
from lapo_cli.core.errors import LapoError, OutputError, UsageError, describe, one_line
from lapo_cli.core.files import as_lapo_error
from lapo_cli.core.interrupts import INTERRUPTED, interrupting, raise_awaiting


class Terminal:
    """The two streams of one command.

    Attributes:
        progress: what the core reports to.
    """

    def __init__(self, output: Output) -> None:
        self._json = output.json
        self._stdout = sys.stdout
        self._out = Console(file=self._stdout, highlight=False)
        if not self._out.is_terminal:
            self._out.width = 1000  # A log file or a pipe has no edge to fold at.
        self.progress = progress_on(_stderr(), quiet=output.quiet)

    @property
    def plain(self) -> bool:
        """Whether results go somewhere other than a terminal."""
        return not self._out.is_terminal

    def say(self, message: str) -> None:
        """Print one sentence on stderr, unless the command is quiet."""
        self.progress.log(message)

    def result(self, document: Mapping[str, Any], *readable: RenderableType) -> None:
        """Print the command's result, once: ``document`` as JSON, or what is ``readable``.

        Raises:
            OutputError: it cannot be written.
            KeyboardInterrupt: the command was interrupted during its last import.
        """
        raise_awaiting()
        _write(self._stdout, _as_json(document) if self._json else "".join(map(self._rendered, readable)))

    def _rendered(self, part: RenderableType) -> str:
        with self._out.capture() as captured:
            self._out.print(Text(part) if isinstance(part, str) else part, soft_wrap=isinstance(part, str))
        # Tables have blank edges; one empty line after a table keeps what follows out of it in Markdown.
        lines = [line.rstrip() for line in captured.get().splitlines() if line.strip()]
        return "\n".join([*lines, ""] if isinstance(part, str) else [*lines, "", ""])


@contextlib.contextmanager
def terminal(output: Output) -> Iterator[Terminal]:
    """The streams for the body of a command. What libraries print goes to stderr: stdout holds the result alone.

    Raises:
        UsageError: the working directory has been deleted, so that no relative path means anything.
    """
    try:
        os.getcwd()  # noqa: PTH109
    except OSError as error:
        raise UsageError("The working directory no longer exists: change to another one first.") from error
    here = Terminal(output)
    with contextlib.redirect_stdout(sys.stderr):
        yield here


class Program(TyperGroup):
    """The whole command line: however it ends is an exit code and, where it failed, one sentence on stderr.

    With ``--json`` the failure is one JSON document on stdout too, also where the options themselves are wrong.
    """

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command that ``args`` give, and exit."""
        words = sys.argv[1:] if args is None else list(args)
        with interrupting():
            try:
                code = self._run(words or ["--help"], prog_name or "lapo", complete_var, extra)
                _write(sys.stdout, "")  # What Typer printed may not be written yet.
            except (Exception, KeyboardInterrupt) as error:
                code = _report(error, as_json="--json" in words, debug="--debug" in words)
            sys.exit(code)

    def _run(self, words: list[str], name: str, complete_var: str | None, extra: dict[str, Any]) -> int:
        self._main_shell_completion(extra, name, complete_var)
        try:
            with self.make_context(name, list(words), **extra) as context:
                self.invoke(context)
        except typer.Exit as end:
            return end.exit_code
        return 0


def _report(error: BaseException, *, as_json: bool, debug: bool) -> int:
    """Print what went wrong; the exit code."""
    if isinstance(error.__cause__ if isinstance(error, OutputError) else error, BrokenPipeError):
        _discard(sys.stdout)  # Help is written by Typer, not by _write.
        return OutputError.exit_code  # The reader has seen enough, as in 'lapo info | head -1'.
    message, code = _explain(error)
    if isinstance(error, LapoError | KeyboardInterrupt) and not _is_first():
        return code
    stderr = _stderr()
    if debug:
        import traceback

        stderr.print(Text("".join(traceback.format_exception(error))), soft_wrap=True)
    stderr.print(Text.assemble(("Error: ", "bold red"), message), soft_wrap=True)
    if as_json:
        with contextlib.suppress(OutputError):
            _write(
                sys.stdout,
                _as_json({"error": {"type": type(error).__name__, "message": message, "exit_code": code}}),
            )
    return code


def _is_first() -> bool:
    """Whether no other process that torchrun started on this machine reports what concerns them all."""
    return "RANK" not in os.environ or os.environ.get("LOCAL_RANK", "0") == "0"


def _explain(error: BaseException) -> tuple[str, int]:
    """One line for the user, and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted: what was finished is kept; the same command resumes.", INTERRUPTED
    if isinstance(error, OSError):
        error = as_lapo_error(error) or error
    if isinstance(error, LapoError):
        return one_line(str(error)), error.exit_code
    if isinstance(error, TyperException):
        context = getattr(error, "ctx", None)
        advice = "" if context is None else f" '{context.command_path} --help' lists what it takes."
        return one_line(error.format_message()).rstrip(".") + "." + advice, error.exit_code
    advice = "--debug shows the traceback, and 'lapo info' what to add to a bug report."
    return f"{describe(error)}. {advice}", 1


class _Unfailing:
    """A stream that drops what cannot be written: that nobody reads the progress is no reason to end the work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            _discard(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            _discard(self._stream)


def _stderr() -> Console:
    stream = None if sys.stderr is None else cast(IO[str], _Unfailing(sys.stderr))
    return Console(file=stream, stderr=True, highlight=False)


def _write(stream: TextIO | None, text: str) -> None:
    """Write and flush.

    Raises:
        OutputError: that failed.
    """
    try:
        if stream is None and text:
            raise OSError(errno.EBADF, "it is closed")
        if stream is not None:
            stream.write(text)
            stream.flush()
    except OSError as error:
        _discard(stream)
        raise OutputError(
            f"The result cannot be written to standard output ({error.strerror}): send it elsewhere and run the same "
            "command again."
        ) from error


def _discard(stream: TextIO | None) -> None:
    """Let what ``stream`` still holds go nowhere, or Python would fail to flush it when it exits."""
    if stream is None:
        return
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _as_json(document: Mapping[str, Any]) -> str:
    return json.dumps(_json_like(document), indent=2, allow_nan=False) + "\n"


def _json_like(value: Any) -> Any:
    """The value in types that JSON has; NaN and infinity become null."""
    if is_dataclass(value) and not isinstance(value, type):
        return _json_like(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _json_like(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_like(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
