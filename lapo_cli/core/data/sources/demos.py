"""The demonstrations bundled with lapo: replay logs."""

from pathlib import Path

from lapo_cli.core.data.replay_log import bundled_logs
from lapo_cli.core.data.sources.base import SOURCES, Importer, Source
from lapo_cli.core.data.sources.replay import LogImporter, log_source
from lapo_cli.core.data.store import Manifest
from lapo_cli.core.errors import MissingInputError


class DemosSource(Source):
    """See the module."""

    name = "demos"
    description = "The demonstrations bundled with lapo."

    def open(self, game: str, location: str | None, scratch: Path) -> Importer | None:
        """See :meth:`Source.open`."""
        if location is not None:
            return None
        logs = bundled_logs(game)
        if not logs:
            raise MissingInputError(
                f"No demonstrations of '{game}' are bundled with lapo: 'lapo download --list' shows those that are; "
                f"for your own, run 'lapo download {game} --from PATH'."
            )
        return LogImporter(game, logs)


def is_bundled(store: Manifest) -> bool:
    """Whether a store was made from the demonstrations bundled with lapo."""
    logs = bundled_logs(store.game)
    return any(store.source.startswith(log_source(path, None)) for path in logs.values())


SOURCES.register(DemosSource())
