"""Packages that only some commands need, and that an extra of lapo installs."""

import importlib
from typing import Any

from lapo_cli.core.errors import UsageError


def require_extra(module: str, extra: str, what: str) -> Any:
    """A module of an optional package.

    Args:
        module: its dotted name.
        extra: the extra of lapo that installs it.
        what: what needs it, as the beginning of the message, for example ``"Reading videos"``.

    Raises:
        UsageError: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{what} needs the extra '{extra}' ({error}): pip install 'lapo-cli[{extra}]'.") from error
