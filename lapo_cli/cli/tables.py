"""Tables of results. On a terminal they are drawn with lines; elsewhere they are Markdown, ready to paste."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from lapo_cli.cli.render import short, wording
from lapo_cli.core.files import human_bytes

if TYPE_CHECKING:
    from lapo_cli.core.data.catalogue import Demos, GameRow
    from lapo_cli.core.data.store import Manifest
    from lapo_cli.core.evaluation.summary import Summary
    from lapo_cli.core.pipeline import PlannedStage
    from lapo_cli.core.recording.demonstrations import Recorded
    from lapo_cli.core.training.stage import StageResult

_NONE = "-"


def summary_parts(summary: "Summary", *, plain: bool) -> Iterator[RenderableType]:
    """The comparison of policies, what failed, and where the files are."""
    if summary.rows:
        superfluous = set()
        if len({row.game for row in summary.rows}) == 1:
            superfluous.add("game")
        if all(row.seeds == 1 for row in summary.rows):
            superfluous.add("seeds")
        rows = [{name: cell for name, cell in cells.items() if name not in superfluous} for cells in summary.cells()]
        table = _table(list(rows[0]), plain=plain)
        for cells in rows:
            table.add_row(*map(Text, cells.values()))
        yield table
    yield from summary.notes
    for failure in summary.failures:
        yield f"Failed: {failure.game}, seed {failure.seed}: {failure.message}"
    for file in summary.files:
        yield f"Written: {file}"


def stage_table(results: "Sequence[StageResult]", *, plain: bool) -> Table:
    """What each stage measured, number by number."""
    table = _table(["game", "seed", "stage", "result", "value"], plain=plain)
    for result in results:
        names = [result.game, str(result.seed), result.stage]
        skipped = [("was done already", "")] if result.skipped else []
        for name, value in [*skipped, *_flat(result.results), ("folder", str(result.path))]:
            table.add_row(*names, Text(name), Text(value))
            names = ["", "", ""]
    return table


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested numbers under one name each; long lists are left to the JSON document."""
    for name, value in values.items():
        shown = prefix + wording(str(name))
        if isinstance(value, Mapping):
            yield from _flat(value, f"{shown}, ")
        elif isinstance(value, float):
            yield shown, short(value)
        elif not isinstance(value, list | tuple):
            yield shown, str(value)


def plan_table(planned: "Sequence[PlannedStage]", *, plain: bool) -> Table:
    """What would run, in order."""
    table = _table(["game", "seed", "stage", "state"], plain=plain)
    for stage in planned:
        table.add_row(stage.game, str(stage.seed), stage.stage, stage.state)
    return table


def sources_table(sources: Mapping[str, str], *, plain: bool) -> Table:
    """What ``lapo download`` can read: name -> description."""
    table = _table(["source", "what it reads"], plain=plain)
    for name, description in sources.items():
        table.add_row(name, Text(description))
    return table


def demos_table(demos: "Sequence[Demos]", bc_shares: Mapping[str, float], *, plain: bool) -> Table:
    """What comes with the package, who played it and how well, and what share of that BC reaches."""
    headings = ["game", "bundled frames", "played by", "training steps", "seed"]
    table = _table([*headings, "mean return", "95 % interval", "episodes", "normalized", "BC share"], plain=plain)
    for of_game in demos:
        table.add_row(
            of_game.game,
            ", ".join(f"{count:,} {split}" for split, count in of_game.frames.items()),
            "; ".join(of_game.policies),
            f"{of_game.training_steps:,}",
            str(of_game.seed),
            f"{of_game.mean_return:.2f}",
            f"{of_game.low:.2f} to {of_game.high:.2f}",
            f"{of_game.episodes:,}",
            f"{of_game.normalized:z.2f}",
            f"{bc_shares[of_game.game]:z.2f}" if of_game.game in bc_shares else _NONE,
        )
    return table


def games_table(rows: "Sequence[GameRow]", data_dir: Path, *, plain: bool) -> Iterator[RenderableType]:
    """What is here of every game."""
    table = _table(["game", "here", "size", "mean return of complete episodes"], plain=plain)
    for row in rows:
        splits = list(row.stores.items())
        table.add_row(
            row.game,
            ", ".join(f"{split} {store.num_frames:,} frames" for split, store in splits) or _NONE,
            human_bytes(sum(store.num_bytes for _, store in splits)) if splits else _NONE,
            ", ".join(_mean_return(store) for _, store in splits) or _NONE,
        )
    yield table
    for row in rows:
        yield from (f"{row.game} {split}: {problem}" for split, problem in row.problems.items())
    yield f"Data folder: {data_dir}"


def stores_table(stores: "Sequence[Manifest]", *, plain: bool) -> Table:
    """The stores that are now here."""
    table = _table(["game", "split", "frames", "size", "episodes", "mean return"], plain=plain)
    for store in stores:
        size = human_bytes(store.num_bytes)
        episodes = f"{store.num_episodes:,}" if store.num_episodes else _NONE  # Counted where returns are known.
        table.add_row(store.game, store.split, f"{store.num_frames:,}", size, episodes, _mean_return(store))
    return table


def _mean_return(store: "Manifest") -> str:
    return _NONE if store.mean_return is None else f"{store.mean_return:.2f}"


def recordings_table(recorded: "Sequence[Recorded]", *, plain: bool) -> Table:
    """The logs that were written, and the returns in them."""
    table = _table(["game", "split", "frames", "episodes", "mean return", "95 % interval", "normalized"], plain=plain)
    for log in recorded:
        info = log.info
        measured = info["measured_episodes"] > 0
        table.add_row(
            log.game,
            log.split,
            f"{log.frames:,}",
            f"{info['measured_episodes']:,} measured of {info['episodes']:,}",
            f"{info['mean_return']:.2f}" if measured else _NONE,
            f"{info['low']:.2f} to {info['high']:.2f}" if measured else _NONE,
            f"{info['normalized']:z.2f}" if "normalized" in info else _NONE,
        )
    return table


def config_table(keys: Mapping[str, Mapping[str, Any]], preset: str, *, plain: bool) -> Table:
    """Every configuration key with the preset's value and its meaning."""
    table = _table(["key", f"value in '{preset}'", "meaning"], plain=plain)
    for key, about in keys.items():
        table.add_row(Text(key), Text(str(about["value"])), Text(about["description"]))
    return table


def info_table(facts: Mapping[str, Any], *, plain: bool) -> Table:
    """Facts for a bug report, one a line."""
    table = _table(["", "lapo info"], plain=plain)
    for name, value in facts.items():
        if name == "free_bytes":
            name, value = "free disk", human_bytes(value)
        if name == "games":
            value = "; ".join(
                ", ".join(
                    [
                        game,
                        *(f"{split} {count:,}" for split, count in about["frames"].items()),
                        *(f"{split} unusable: {problem}" for split, problem in about["problems"].items()),
                    ]
                )
                for game, about in value.items()
            )
        if isinstance(value, list):
            value = ", ".join(value)
        table.add_row(name.replace("_", " "), Text("none" if value in (None, "") else str(value)))
    return table


def _table(headings: Sequence[str], *, plain: bool) -> Table:
    table = Table(box=box.MARKDOWN if plain else box.SIMPLE_HEAD)
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=plain)
    return table
