"""Take a run of quick into the package and the README: ``python -m tests.results RUN_DIR COMMIT [STAGE=COMMIT ...]``.

Its results replace those of the same games, whatever seeds these had; other games keep theirs. The run has to have BC
(``--set extra_stages=[relabel,online-relabel,bc]``) and the summary of ``lapo evaluate RUN_DIR``; COMMIT is that of the
code that trained it, but for the stages that are named with another one. A supervised inverse dynamics model that it
lacks is kept from earlier results: it depends on the data and on stage 1's settings alone.
"""

import argparse
import json
import re
from collections.abc import Collection, Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from lapo_cli.core.config import Config
from lapo_cli.core.config_loading import load_config
from lapo_cli.core.evaluation.summary import ALL_GAMES
from lapo_cli.core.run_dir import RunDir, SeedDir
from lapo_cli.core.training.networks import IDM, SUPERVISED_IDM
from lapo_cli.core.training.stage import STAGES, Stage, sections_of

_Row = Mapping[str, Any]

README = Path(__file__).parents[1] / "README.md"
FOLDER = Path(__file__).parents[1] / "lapo_cli" / "results"

_DEMONSTRATIONS = "demonstrations (expert)"
_BC = "BC on all true labels"
_SHOWN: dict[tuple[str, int | None], str] = {
    ("random policy", None): "random",
    (_DEMONSTRATIONS, None): "demonstrations",
    ("LAPO decoded offline", 16): "decoded, 16 labels",
    ("LAPO decoded offline", 256): "decoded, 256",
    ("LAPO relabelled and cloned", 16): "cloned, 16",
    ("LAPO relabelled and cloned", 256): "cloned, 256",
    (_BC, None): "BC",
    ("LAPO fine-tuned online", None): "online",
    ("LAPO relabelled online, then PPO", None): "relabelled online",
    ("PPO from scratch", None): "scratch",
}
_PLAYED = [key for key in _SHOWN if key[0] != _DEMONSTRATIONS]
_PROBE = "probe (untrained, supervised)"


def collect(run: RunDir, commit: str, others: Mapping[str, str]) -> dict[str, Any]:
    """The summary of a run without its prose, with what made it and the accuracies of its probes.

    Args:
        commit: of the code that trained it.
        others: stage -> commit of those that other code trained.
    """
    summary = json.loads((run.path / "summary.json").read_text())
    trained = {game: list(seeds) for game, seeds in groupby(run.seed_dirs(), lambda of: of.game)}
    _check(summary, trained, load_config(run.preset))
    return {
        "lapo_version": summary["lapo_version"],
        "preset": run.preset,
        "made": {
            game: {"overrides": [], "seeds": {str(of.seed): _made(of, commit, others) for of in seeds}}
            for game, seeds in trained.items()
        },
        "interval": summary["interval"],
        "rows": _plain(_without(summary["rows"], {ALL_GAMES})),
        "by_seed": {seed: _plain(rows) for seed, rows in summary["by_seed"].items()},
        "failures": [],
        "probes": {game: {str(of.seed): _probe(of) for of in seeds} for game, seeds in trained.items()},
    }


def _check(summary: Mapping[str, Any], trained: Mapping[str, list[SeedDir]], preset: Config) -> None:
    """The summary is of all that was trained, and all of it by the preset."""
    assert summary["failures"] == []
    found = {(row["game"], int(seed)) for seed, rows in summary["by_seed"].items() for row in rows}
    assert found == {(game, of.seed) for game, seeds in trained.items() for of in seeds}
    for row in _without(summary["rows"], {ALL_GAMES}):
        if row["method"] != _DEMONSTRATIONS:
            assert row["seeds"] == len(trained[row["game"]]), row
            assert row["episodes"] == row["seeds"] * preset.evaluation.episodes, row
    for game, seeds in trained.items():
        assert {row["method"] for row in summary["rows"] if row["game"] == game} == {method for method, _ in _SHOWN}
        for stage, folder in ((stage, of.stage(stage.name)) for of in seeds for stage in _stages(of)):
            config = stage.configure(preset).model_dump(mode="json")
            assert folder.read_config()["config"] == sections_of(stage, config), folder.path


def merged(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """The ``new`` results, completed in place, and the ``old`` ones of games that they lack; games in order."""
    games = {*new["probes"], ALL_GAMES}
    for game, of_game in new["probes"].items():
        for seed, probe in of_game.items():
            kept = old["probes"].get(game, {}).get(seed, {}).get("supervised")
            if probe["supervised"] is None and kept is not None:
                probe["supervised"] = kept
                made = old["made"][game]["seeds"][seed]
                new["made"][game]["seeds"][seed]["supervised"] = made.get("supervised", made)
    return {
        **new,
        **{name: dict(sorted({**old[name], **new[name]}.items())) for name in ("made", "probes")},
        "rows": _sorted([*_without(old["rows"], games), *new["rows"]]),
        "by_seed": {
            seed: _sorted([*_without(old["by_seed"].get(seed, []), games), *new["by_seed"].get(seed, [])])
            for seed in sorted({*old["by_seed"], *new["by_seed"]}, key=int)
        },
    }


def tables(content: Mapping[str, Any]) -> dict[str, str]:
    """Name of a table of the README -> its lines.

    Games that were not made by the preset as it is have a star, and so has the mean over such games.
    """
    rows, probes = content["rows"], content["probes"]
    titles = {game: game + "*" * (made["overrides"] != []) for game, made in content["made"].items()}
    mean = "mean" + "*" * (titles.keys() != set(titles.values()))
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
        "quick": _table(["game", "seeds", *_SHOWN.values(), _PROBE], [*games, [mean, "", *_means(rows), ""]]),
        "seeds": _table(["game", "seed", *(_SHOWN[key] for key in _PLAYED), _PROBE], seeds),
    }


def shown(readme: str, name: str) -> str:
    """The lines of a table of the README."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", readme, re.DOTALL)
    assert found, f"README.md has no table {name}"
    return found[1]


def with_results(readme: str, content: Mapping[str, Any]) -> str:
    """The README with these tables, and with the shares of BC in the table of demonstrations."""
    demos = shown(readme, "demos").splitlines()
    shares = {row["game"]: row["share"] for row in content["rows"] if row["method"] == _BC}
    cells = [line.rsplit("|", 2) for line in demos]
    lines = [*demos[:2], *(f"{start}| {shares[start.split()[1]]:z.2f} |" for start, _, _ in cells[2:])]
    made = {**tables(content), "demos": "".join(f"{line}\n" for line in lines)}
    for name, table in made.items():
        readme = readme.replace(shown(readme, name), table)
    return readme


def _without(rows: Iterable[_Row], games: Collection[str]) -> list[_Row]:
    return [row for row in rows if row["game"] not in games]


def _plain(rows: Iterable[_Row]) -> list[_Row]:
    """Without others' results and what the table makes of the other columns."""
    left_out = ("reference", "published", "stage", "policy")
    return [{name: value for name, value in row.items() if name not in left_out} for row in rows]


def _sorted(rows: Iterable[_Row]) -> list[_Row]:
    return sorted(rows, key=lambda row: str(row["game"]))  # Stable, so that policies keep their order.


def _stages(trained: SeedDir) -> list[Stage]:
    return [stage for stage in STAGES.values() if trained.stage(stage.name).done() is not None]


def _made(trained: SeedDir, commit: str, others: Mapping[str, str]) -> dict[str, Any]:
    devices = sorted({trained.stage(stage.name).read_config()["device"] for stage in _stages(trained)})
    made = {"commit": commit, "device": "; ".join(devices), "data": trained.stage(IDM).read_config()["inputs"]}
    return {**made, "commits_of_stages": dict(others)} if others else made


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
    """Write the results and the README."""
    parser = argparse.ArgumentParser(prog="python -m tests.results", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("commit", help="40 hexadecimal digits")
    parser.add_argument("others", nargs="*", metavar="STAGE=COMMIT", help="stages that other code trained")
    arguments = parser.parse_args()
    run = RunDir.open(arguments.run_dir)
    assert run.preset == "quick"
    others = dict(word.split("=", 1) for word in arguments.others)
    assert others.keys() <= set(STAGES.names())
    assert all(re.fullmatch("[0-9a-f]{40}", commit) for commit in (arguments.commit, *others.values()))
    file = FOLDER / f"{run.preset}.json"
    content = merged(collect(run, arguments.commit, others), json.loads(file.read_text()))
    file.write_text(json.dumps(content, indent=1) + "\n")
    README.write_text(with_results(README.read_text(), content))


if __name__ == "__main__":
    main()
