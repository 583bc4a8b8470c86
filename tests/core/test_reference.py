import json
from collections.abc import Iterable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from lapo_cli.core.config_loading import load_config, presets
from lapo_cli.core.envs.base import ENVIRONMENTS
from lapo_cli.core.evaluation.reference import reference_returns, with_references
from lapo_cli.core.evaluation.summary import ALL_GAMES, Row, Summary
from lapo_cli.core.run_dir import RunDir

BUNDLED = [file for file in resources.files("lapo_cli").joinpath("results").iterdir() if file.name.endswith(".json")]

_SHOWN = (
    ("random policy", None),
    ("demonstrations (expert)", None),
    ("LAPO decoded offline", 16),
    ("LAPO decoded offline", 256),
    ("LAPO relabelled and cloned", 16),
    ("LAPO relabelled and cloned", 256),
    ("BC on all true labels", None),
    ("LAPO fine-tuned online", None),
    ("LAPO relabelled online, then PPO", None),
    ("PPO from scratch", None),
)
_PLAYED = tuple(key for key in _SHOWN if key[0] != "demonstrations (expert)")


def _made() -> dict[str, Any]:
    made: dict[str, Any] = json.loads(resources.files("lapo_cli").joinpath("results", "quick.json").read_text())["made"]
    return made


@pytest.mark.parametrize("file", BUNDLED, ids=lambda file: file.name)
def test_bundled_results_say_what_made_them(file):
    content = json.loads(file.read_text())
    assert file.name.removesuffix(".json") in presets()
    assert content["lapo_version"]
    games = {row["game"] for row in content["rows"]} - {ALL_GAMES}
    assert games == content["made"].keys()
    for game, made in content["made"].items():
        load_config(content["preset"], overrides=made["overrides"])
        for seed, training in made["seeds"].items():
            assert len(training["commit"]) == 40
            assert training["device"]
            assert game in {row["game"] for row in content["by_seed"][seed]}
    assert content["failures"] == []
    assert {row["game"] for row in content["rows"]} <= {*ENVIRONMENTS.names(), ALL_GAMES}
    assert all(seed.isdigit() for seed in content["by_seed"])


def test_a_run_of_the_same_configuration_is_shown_beside_them(tmp_path: Path):
    config = load_config("quick", overrides=_made()["jumper"]["overrides"])
    known = reference_returns(RunDir(tmp_path, config, "quick"))
    assert 2.0 < known["jumper", "random policy", None, None] < 4.0
    row = Row("jumper", "random policy", None, None, 1.0, 0.5, 1.5, 10, 1, 0.1)
    shown = with_references(Summary([row], {}, [], [], tmp_path), RunDir(tmp_path, config, "quick"))
    assert [of.reference for of in shown.rows] == [known["jumper", "random policy", None, None]]
    harmless = config.model_copy(update={"checkpoint_seconds": 1.0})
    assert reference_returns(RunDir(tmp_path, harmless, "quick")) == known


@pytest.mark.parametrize("overrides", [["stage1.steps=10"], ["data.max_frames=2000"]])
def test_a_run_of_another_configuration_is_not(tmp_path: Path, overrides: list[str]):
    assert reference_returns(RunDir(tmp_path, load_config("quick", overrides=overrides), "quick")) == {}


def test_what_has_no_results_has_no_reference(tmp_path: Path):
    assert reference_returns(RunDir(tmp_path, load_config("paper"), "paper")) == {}
    assert reference_returns(RunDir(tmp_path, load_config("quick"), "../results/quick")) == {}


def test_the_table_has_the_column_only_where_there_is_one(tmp_path: Path):
    row = Row("maze", "a", None, None, 1.0, 0.5, 1.5, 10, 1, 0.1)
    assert "reference" not in Summary([row], {}, [], [], tmp_path).cells()[0]
    other = replace(row, method="b", reference=2.5)
    assert [cells["reference"] for cells in Summary([row, other], {}, [], [], tmp_path).cells()] == ["-", "2.50"]
    assert "2.50" in Summary([row, other], {}, [], [], tmp_path).markdown()


def _table(name: str) -> list[list[str]]:
    """The cells of a table of README, without its heading."""
    lines = (Path(__file__).parents[2] / "README.md").read_text().splitlines()
    table = lines[lines.index(f"<!-- {name} -->") + 3 : lines.index(f"<!-- /{name} -->")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _returns(rows: list[dict[str, Any]], game: str, shown: Iterable[tuple[str, int | None]] = _SHOWN) -> list[str]:
    found = {(row["method"], row["labels"]): row for row in rows if row["game"] == game}
    return [f"{found[key]['normalized']:z.2f}" if key in found else "-" for key in shown]


def _probe(probes: list[dict[str, Any]]) -> str:
    means = (_mean([probe[name] for probe in probes]) for name in ("probe", "untrained", "supervised"))
    return "{:.2f} ({:.2f}, {:.2f})".format(*means)


def test_the_readme_shows_the_results_that_the_package_holds():
    content = json.loads(resources.files("lapo_cli").joinpath("results", "quick.json").read_text())
    rows, probes = content["rows"], content["probes"]
    *games, means = _table("quick")
    assert games == [
        [game, ", ".join(of_game), *_returns(rows, game), _probe(list(of_game.values()))]
        for game, of_game in probes.items()
    ]
    for key, mean in zip(_SHOWN, means[2:-1], strict=True):
        normalized = [row["normalized"] for row in rows if (row["method"], row["labels"]) == key]
        of_all = f"{_mean([min(value, 1) for value in normalized]):z.2f}"
        assert mean == (of_all if len(normalized) == len(games) else "-")
    assert _table("seeds") == [
        [game, seed, *_returns(content["by_seed"][seed], game, _PLAYED), _probe([probe])]
        for game, of_game in probes.items()
        for seed, probe in of_game.items()
        if len(of_game) > 1
    ]
