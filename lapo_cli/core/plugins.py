"""Files given by ``--plugin``, Python modules that register what they add; and the stages of installed packages."""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path

from lapo_cli.core.errors import LapoError, UsageError, describe

_LOADED: list[Path] = []


def load_plugin(file: Path) -> None:
    """Run a plugin file once; what it registers is there from then on.

    Raises:
        UsageError: there is no such file, or it fails.
        PluginError: it registers a name that is taken.
    """
    file = file.absolute()
    if file in _LOADED:
        return
    if not file.is_file():
        raise UsageError(f"There is no plugin file {file}: check the path of --plugin.")
    # A name of its own, and known to Python, so that what the file defines can be sent to other processes.
    name = f"lapo_plugin_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"The plugin {file} is no Python file: give one that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except LapoError:
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(f"The plugin {file} failed ({describe(error)}): correct it, or leave it out.") from error
    _LOADED.append(file)


def loaded_plugins() -> list[Path]:
    """The files loaded so far, in order: what another process has to load to know the same."""
    return list(_LOADED)


def load_installed_stages() -> None:
    """Import the stages that installed packages offer: their sections must be known to read a configuration.

    Raises:
        PluginError: one of them cannot be loaded.
    """
    if importlib.metadata.entry_points(group="lapo.stages"):
        # By its name, because stages are built on the configuration.
        importlib.import_module("lapo_cli.core.training.stage").STAGES.names()
