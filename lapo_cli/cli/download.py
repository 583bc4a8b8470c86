"""``lapo download``: announce what fetching demonstrations will take, then fetch them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lapo_cli.cli.options import DataDir, Output
from lapo_cli.cli.tables import demos_table, games_table, sources_table, stores_table
from lapo_cli.cli.terminal import Terminal, terminal
from lapo_cli.core.envs.base import parse_games
from lapo_cli.core.errors import DiskFullError, LapoError, UsageError
from lapo_cli.core.files import human_bytes
from lapo_cli.core.registry import plain_name

if TYPE_CHECKING:
    from lapo_cli.core.data.download import Plan


def _most_frames() -> int:
    from lapo_cli.core.config import Config

    return Config().data.max_frames


def download(
    data_dir: DataDir,
    max_frames: Annotated[
        int,
        typer.Option(
            min=3,
            default_factory=_most_frames,
            show_default="80 chunks: 2,621,440",
            help="Maximum number of training frames to store.",
        ),
    ],
    output: Output,
    games: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="GAME…|all",
            help="Games to get; with --from or --source, any name for your own data.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Source to read from; --list describes the sources.",
            show_default="drive; with --from, the one that reads it",
        ),
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="PATH|URL",
            help="Location to read: a file, folder, URL or Minari id; --list says what each source reads.",
            show_default="none",
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Fetch and store again what is here already, and replace it.")
    ] = False,
    show_list: Annotated[
        bool, typer.Option("--list", help="Show the sources, the games and what is stored; fetch nothing.")
    ] = False,
) -> None:
    """Fetch demonstrations and store them in the data folder.

    An interrupted download resumes where it stopped; an incomplete store is never used.
    """
    with terminal(output) as here:
        if not (show_list or games):
            raise UsageError("No game was named: give one or more games, or 'all', or --list to see them.")
        own_names = source is not None or from_ is not None or show_list
        names = _names(games or [], own_names=own_names)

        from lapo_cli.core.data import catalogue
        from lapo_cli.core.data import download as core
        from lapo_cli.core.data.sources.base import SOURCES
        from lapo_cli.core.evaluation.reference import bc_shares

        if show_list:
            shown = [row for row in catalogue.list_games(data_dir) if row.game in names or not names]
            demos = [found for row in shown if (found := catalogue.bundled_demos(row.game))]
            sources = {source.name: source.description for source in SOURCES.values()}
            shares = bc_shares()
            here.result(
                {"data_dir": data_dir, "sources": sources, "bundled": demos, "bc_shares": shares, "games": shown},
                sources_table(sources, plain=here.plain),
                demos_table(demos, shares, plain=here.plain),
                "normalized: 0 is random play, 1 the paper's expert; BC share: the share of their return above random"
                " play that BC on all true labels reached in runs of preset 'quick'.",
                *games_table(shown, data_dir, plain=here.plain),
            )
            return
        plans = [
            core.plan(name, data_dir, source=source, location=from_, max_frames=max_frames, fresh=fresh)
            for name in names
        ]
        _carry_out(here, plans)


def _names(games: list[str], *, own_names: bool) -> list[str]:
    """Names from the command line; with ``own_names`` they need not be registered."""
    names = [name.strip() for word in games for name in word.split(",") if name.strip()]
    found = [[plain_name(name)] if own_names and name != "all" else parse_games([name]) for name in names]
    return list(dict.fromkeys(name for several in found for name in several))


def _carry_out(here: Terminal, plans: "list[Plan]") -> None:
    """Get one game after the other; one that fails stops the others only where they would fail too."""
    from lapo_cli.core.data.download import carry_out

    for plan in plans:
        here.say(_announcement(plan))
    stores: list[Any] = []
    failures: list[dict[str, str]] = []
    for plan in plans:
        try:
            stores += carry_out(plan, here.progress).values()
        except LapoError as error:
            if len(plans) == 1 or isinstance(error, DiskFullError):
                raise
            here.say(f"{plan.game} failed: {error}")
            failures.append({"game": plan.game, "message": str(error)})
    here.result(
        {"data_dir": plans[0].data_dir, "stores": stores, "failures": failures},
        stores_table(stores, plain=here.plain),
        *(f"Failed: {failure['game']}: {failure['message']}" for failure in failures),
    )
    if failures:
        raise typer.Exit(1)


def _announcement(plan: "Plan") -> str:
    """One line on what is about to happen."""
    here = [f"{split} is already here ({store.num_frames:,} frames)" for split, store in plan.kept.items()]
    if not plan.offers:
        return f"{plan.game}: {', '.join(here)}; --fresh gets it again."
    splits = " and ".join(
        split if offer.num_frames is None else f"{offer.num_frames:,} {split} frames"
        for split, offer in plan.offers.items()
    )
    size = "as much as there is" if plan.store_bytes is None else f"about {human_bytes(plan.store_bytes)}"
    fetched = "nothing to fetch"
    if plan.importer.url is not None:
        fetched = f"fetch a zip file from {plan.importer.url}, of a size that the server reports"
    replaced = [f"this replaces the {split} store from {store.source}" for split, store in plan.replaced.items()]
    free = f"{human_bytes(plan.free_bytes)} are free"
    parts = [fetched, f"store {splits}, {size}, in {Path(plan.data_dir, plan.game)}", *here, *replaced, free]
    return f"{plan.game}: {'; '.join(parts)}."
