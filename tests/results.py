"""Take a run's results into the package and the README: ``python -m tests.results RUN_DIR COMMIT``.

They replace those of the same games, whatever seeds these had; other games keep theirs. A supervised inverse dynamics
model that the run did not train is kept, since nothing but stage 1's settings and the data changes it.
``lapo evaluate RUN_DIR`` has to have made its summary. COMMIT is that of the code that trained it.
"""

import argparse
import json
import re
from collections.abc import Collection, Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from lapo_cli.core.config_loading import load_config
from lapo_cli.core.evaluation.summary import ALL_GAMES
from lapo_cli.core.run_dir import RunDir, SeedDir
from lapo_cli.core.training.networks import IDM, SUPERVISED_IDM

_Row = Mapping[str, Any]

README = Path(__file__).parents[1] / "README.md"
FOLDER = Path(__file__).parents[1] / "lapo_cli" / "results"

_SHOWN: dict[tuple[str, int | None], str] = {
    ("random policy", None): "random",
    ("demonstrations (expert)", None): "demonstrations",
    ("LAPO decoded offline", 16): "decoded, 16 labels",
    ("LAPO decoded offline", 256): "decoded, 256",
    ("LAPO relabelled and cloned", 16): "cloned, 16",
    ("LAPO relabelled and cloned", 256): "cloned, 256",
    ("BC on all true labels", None): "BC",
    ("LAPO fine-tuned online", None): "online",
    ("LAPO relabelled online, then PPO", None): "relabelled online",
    ("PPO from scratch", None): "scratch",
}
_PLAYED = [key for key in _SHOWN if key[0] != "demonstrations (expert)"]
_PROBE = "probe (untrained, supervised)"


def collect(run: RunDir, commit: str) -> dict[str, Any]:
    """The summary of a run without its prose, with what made it and the accuracies of its probes."""
    summary = json.loads((run.path / "summary.json").read_text())
    preset = load_config(run.preset)
    assert run.config.model_copy(update={"extra_stages": preset.extra_stages}) == preset, "not the preset alone"
    assert summary["failures"] == []
    trained = {game: list(seeds) for game, seeds in groupby(run.seed_dirs(), lambda of: of.game)}
    return {
        "lapo_version": summary["lapo_version"],
        "preset": run.preset,
        "made": {
            game: {"overrides": [], "seeds": {str(of.seed): _made(of, commit) for of in seeds}}
            for game, seeds in trained.items()
        },
        "interval": summary["interval"],
        "rows": _without(summary["rows"], {ALL_GAMES}),
        "by_seed": summary["by_seed"],
        "failures": [],
        "probes": {game: {str(of.seed): _probe(of) for of in seeds} for game, seeds in trained.items()},
    }


def merged(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """The ``new`` results, which are changed, and the ``old`` ones of games that they lack; games in order."""
    games = {*new["probes"], ALL_GAMES}
    for game, of_game in new["probes"].items():
        for seed, probe in of_game.items():
            kept = old["probes"].get(game, {}).get(seed, {}).get("supervised")
            if probe["supervised"] is None and kept is not None:
                probe["supervised"] = kept
                new["made"][game]["seeds"][seed]["supervised"] = old["made"][game]["seeds"][seed]
    return {
        **new,
        **{name: dict(sorted({**old[name], **new[name]}.items())) for name in ("made", "probes")},
        "rows": _sorted([*_without(old["rows"], games), *new["rows"]]),
        "by_seed": {
            seed: _sorted([*_without(old["by_seed"].get(seed, []), games), *new["by_seed"].get(seed, [])])
            for seed in sorted({*old["by_seed"], *new["by_seed"]})
        },
    }


def tables(content: Mapping[str, Any]) -> dict[str, str]:
    """Name of a table of the README -> its lines; a game whose settings are not the preset's has a star."""
    rows, probes = content["rows"], content["probes"]
    titles = {game: game + "*" * bool(made["overrides"]) for game, made in content["made"].items()}
    games = [
        [titles[game], ", ".join(of_game), *_returns(rows, game, _SHOWN), _accuracies(of_game.values())]
        for game, of_game in probes.items()
    ]
    seeds = [
        [titles[game], seed, *_returns(content["by_seed"][seed], game, _PLAYED), _accuracies([probe])]
        for game, of_game in probes.items()
        for seed, probe in of_game.items()
        if len(of_game) > 1
    ]
    return {
        "quick": _table(["game", "seeds", *_SHOWN.values(), _PROBE], [*games, ["mean", "", *_means(rows), ""]]),
        "seeds": _table(["game", "seed", *(_SHOWN[key] for key in _PLAYED), _PROBE], seeds),
    }


def shown(readme: str, name: str) -> str:
    """The lines of a table of the README."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", readme, re.DOTALL)
    assert found, f"README.md has no table {name}"
    return found[1]


def _without(rows: Iterable[_Row], games: Collection[str]) -> list[_Row]:
    return [row for row in rows if row["game"] not in games]


def _sorted(rows: Iterable[_Row]) -> list[_Row]:
    return sorted(rows, key=lambda row: str(row["game"]))  # Stable, so that policies keep their order.


def _made(trained: SeedDir, commit: str) -> dict[str, Any]:
    stages = [trained.stage(done.parent.name).read_config() for done in trained.path.glob("*/done.json")]
    devices = sorted({stage["device"] for stage in stages if stage["device"]})
    return {"commit": commit, "device": ", ".join(devices), "data": trained.stage(IDM).read_config()["inputs"]}


def _probe(trained: SeedDir) -> dict[str, float | None]:
    idm, supervised = (trained.stage(name).done() for name in (IDM, SUPERVISED_IDM))
    assert idm is not None
    found = idm["results"]
    return {
        "probe": found["probe/accuracy"],
        "untrained": found["probe/untrained"],
        "majority": found["probe/majority_baseline"],
        "supervised": supervised and supervised["results"]["val/accuracy"],
        "world_model_error": found["val/world_model"] / found["val/copy_last_frame"],
        "code_usage": found["val/code_usage"],
    }


def _returns(rows: Iterable[_Row], game: str, keys: Iterable[tuple[str, int | None]]) -> list[str]:
    found = {(row["method"], row["labels"]): row["normalized"] for row in rows if row["game"] == game}
    return [_number(found.get(key)) for key in keys]


def _means(rows: Collection[_Row]) -> list[str]:
    """Of the games, which count 1 at most; a dash where a game has none."""
    games = dict.fromkeys(row["game"] for row in rows)
    found = {(row["game"], row["method"], row["labels"]): row["normalized"] for row in rows}
    return [_number(_mean([found.get((game, *key)) for game in games])) for key in _SHOWN]


def _accuracies(probes: Collection[Mapping[str, float | None]]) -> str:
    means = (_number(_mean([of[name] for of in probes])) for name in ("probe", "untrained", "supervised"))
    return "{} ({}, {})".format(*means)


def _mean(values: list[float | None]) -> float | None:
    known = [min(value, 1.0) for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:z.2f}"


def _table(heading: list[str], rows: list[list[str]]) -> str:
    lines = ["".join(f" {cell} |" if cell else " |" for cell in row) for row in (heading, *rows)]
    return "".join(f"|{line}\n" for line in [lines[0], "---|" * len(heading), *lines[1:]])


def main() -> None:
    """Write both."""
    parser = argparse.ArgumentParser(prog="python -m tests.results", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("commit", help="40 hexadecimal digits")
    arguments = parser.parse_args()
    run = RunDir.open(arguments.run_dir)
    file = FOLDER / f"{run.preset}.json"
    content = merged(collect(run, arguments.commit), json.loads(file.read_text()))
    file.write_text(json.dumps(content, indent=1) + "\n")
    readme = README.read_text()
    for name, table in tables(content).items():
        readme = readme.replace(shown(readme, name), table)
    README.write_text(readme)


if __name__ == "__main__":
    main()
