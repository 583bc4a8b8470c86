"""``lapo download``: say what getting demonstrations will take, then get them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lapo_cli.cli.options import DataDir, Output
from lapo_cli.cli.tables import demos_table, games_table, stores_table
from lapo_cli.cli.terminal import Terminal, terminal
from lapo_cli.core.errors import DiskFullError, LapoError, UsageError
from lapo_cli.core.files import human_bytes
from lapo_cli.core.games import parse_games

if TYPE_CHECKING:
    from lapo_cli.core.data.download import Plan

Source = Literal["drive", "demos"]


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
            help="Most training frames to store, of 12.3 kB each.",
        ),
    ],
    output: Output,
    games: Annotated[
        list[str] | None, typer.Argument(metavar="GAME…|all", help="The games to get.", show_default=False)
    ] = None,
    source: Annotated[
        Source, typer.Option(help="The official files on Google Drive, or the demonstrations bundled with lapo.")
    ] = "drive",
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="PATH|URL",
            help="Take them from here instead: a zip file or folder of npz chunks, a replay log, or a zip's address.",
            show_default="none",
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Fetch and store anew what is already here.")] = False,
    show_list: Annotated[
        bool, typer.Option("--list", help="Show the games, their sources, and what is here; get nothing.")
    ] = False,
) -> None:
    """Get demonstrations of games into the data folder.

    An interrupted download goes on where it was cut; a store half made is never taken for a whole one.
    """
    with terminal(output) as here:
        if not (show_list or games):
            raise UsageError("No game was named: give one or more games, or 'all', or --list to see them.")
        names = [game.name for game in parse_games(games or [])] if games else []

        from lapo_cli.core.data import download as core

        if show_list:
            shown = [row for row in core.list_games(data_dir) if row.game in names or not names]
            demos = [core.bundled_demos(row.game) for row in shown]
            tables = [demos_table(demos, plain=here.plain), *games_table(shown, data_dir, plain=here.plain)]
            here.result({"data_dir": data_dir, "bundled": demos, "games": shown}, *tables)
            return
        plans = [
            core.plan(name, data_dir, source=source, from_=from_, max_frames=max_frames, fresh=fresh) for name in names
        ]
        _carry_out(here, plans)


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
    from lapo_cli.core.data.origins import RemoteOrigin

    here = [f"{split} is already here ({store.num_frames:,} frames)" for split, store in plan.kept.items()]
    if not plan.offers:
        return f"{plan.game}: {', '.join(here)}; --fresh would get it anew."
    splits = " and ".join(
        split if offer.num_frames is None else f"{offer.num_frames:,} {split} frames"
        for split, offer in plan.offers.items()
    )
    size = "as much as there is" if plan.store_bytes is None else f"about {human_bytes(plan.store_bytes)}"
    fetched = "nothing to fetch"
    if isinstance(plan.origin, RemoteOrigin):
        fetched = f"fetch a zip file from {plan.origin.url}, whose size the server will tell"
    replaced = [f"the {split} store from {store.source} gives way" for split, store in plan.replaced.items()]
    free = f"{human_bytes(plan.free_bytes)} are free"
    parts = [fetched, f"store {splits}, {size}, in {Path(plan.data_dir, plan.game)}", *here, *replaced, free]
    return f"{plan.game}: {'; '.join(parts)}."
