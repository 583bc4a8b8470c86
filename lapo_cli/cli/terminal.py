"""What a command says and where: results on stdout, everything else on stderr, and an exit code at the end."""

import contextlib
import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from lapo_cli.cli.options import Output
from lapo_cli.cli.render import progress_on
from lapo_cli.core.errors import LapoError
from lapo_cli.core.files import disk_full_as_error

_INTERRUPTED = 130


class Terminal:
    """The two streams of one command.

    Attributes:
        progress: what the core reports to.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._out = Console(file=sys.stdout, highlight=False)
        if not self._out.is_terminal:
            self._out.width = 1000  # A log file or a pipe has no edge to fold at.
        self._err = Console(file=sys.stderr, highlight=False)
        self.progress = progress_on(self._err, quiet=output.quiet)

    @property
    def plain(self) -> bool:
        """Whether results go somewhere other than a terminal."""
        return not self._out.is_terminal

    def say(self, message: str) -> None:
        """Tell the person one sentence, unless they want it quiet."""
        self.progress.log(message)

    def result(self, document: Mapping[str, Any], *readable: RenderableType) -> None:
        """Print the command's result, once: ``document`` as JSON, or what is ``readable``."""
        if self._output.json:
            self._out.file.write(json.dumps(_json_like(document), indent=2, allow_nan=False) + "\n")
            self._out.file.flush()
            return
        for part in readable:
            with self._out.capture() as captured:
                self._out.print(Text(part) if isinstance(part, str) else part, soft_wrap=isinstance(part, str))
            # Tables have blank edges; one empty line after a table keeps what follows out of it in Markdown.
            lines = [line.rstrip() for line in captured.get().splitlines() if line.strip()]
            self._out.file.write("\n".join([*lines, ""] if isinstance(part, str) else [*lines, "", ""]))

    def fail(self, error: BaseException, message: str, code: int) -> typer.Exit:
        """Report what went wrong; the exception to raise ends the process with ``code``."""
        if self._output.debug:
            import traceback

            self._err.print(Text("".join(traceback.format_exception(error))), soft_wrap=True)
        self._err.print(Text.assemble(("Error: ", "bold red"), message), soft_wrap=True)
        if self._output.json:
            self.result({"error": {"type": type(error).__name__, "message": message, "exit_code": code}})
        return typer.Exit(code)


@contextlib.contextmanager
def terminal(output: Output) -> Iterator[Terminal]:
    """Run the body of a command: whatever it raises becomes one sentence and an exit code.

    What libraries print goes to stderr, so that stdout holds the result alone.
    """
    here = Terminal(output)
    with contextlib.redirect_stdout(sys.stderr):
        try:
            yield here
        except (typer.Exit, BrokenPipeError):
            raise
        except KeyboardInterrupt as error:
            message = "Interrupted: what was finished is kept; the same command resumes."
            raise here.fail(error, message, _INTERRUPTED) from None
        except Exception as error:
            known = _as_lapo_error(error)
            if known is not None:
                raise here.fail(error, str(known), known.exit_code) from None
            what = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".: ")
            advice = "--debug shows the traceback, and 'lapo info' what to add to a bug report."
            raise here.fail(error, f"{what}. {advice}", 1) from None


def _as_lapo_error(error: Exception) -> LapoError | None:
    """The sentence for a person, where the exception is of a kind that people cause."""
    if isinstance(error, LapoError):
        return error
    if not isinstance(error, OSError):
        return None
    path = Path(str(error.filename)) if error.filename is not None else None
    try:
        with disk_full_as_error(path.parent if path else Path.cwd()):
            raise error
    except LapoError as full:
        return full
    except OSError:
        return (
            LapoError(f"{path} cannot be used ({error.strerror}): check the path and its permissions.")
            if path
            else None
        )


def _json_like(value: Any) -> Any:
    """The same in types that JSON has; a number that is none becomes null."""
    if is_dataclass(value) and not isinstance(value, type):
        return _json_like(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _json_like(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_like(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
