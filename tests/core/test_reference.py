import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from lapo_cli.core.config_loading import load_config, presets
from lapo_cli.core.envs.base import ENVIRONMENTS
from lapo_cli.core.evaluation import reference
from lapo_cli.core.evaluation.reference import reference_returns
from lapo_cli.core.evaluation.summary import ALL_GAMES, Row, Summary
from lapo_cli.core.report.results import read_run
from lapo_cli.core.report.tables import policy_rows
from lapo_cli.core.run_dir import RunDir
from tests import results
from tests.core.report.run_files import write_run

BUNDLED = [file for file in resources.files("lapo_cli").joinpath("results").iterdir() if file.name.endswith(".json")]


@pytest.mark.parametrize("file", BUNDLED, ids=lambda file: file.name)
def test_bundled_results_say_what_made_them(file):
    content = json.loads(file.read_text())
    assert file.name.removesuffix(".json") in presets()
    assert content["lapo_version"]
    games = {row["game"] for row in content["rows"]} - {ALL_GAMES}
    assert games == content["made"].keys()
    for game, made in content["made"].items():
        load_config(content["preset"], overrides=made["overrides"] or [])
        for seed, training in made["seeds"].items():
            assert len(training["commit"]) == 40
            assert training["device"]
            assert game in {row["game"] for row in content["by_seed"][seed]}
    assert content["failures"] == []
    assert {row["game"] for row in content["rows"]} <= {*ENVIRONMENTS.names(), ALL_GAMES}
    assert all(seed.isdigit() for seed in content["by_seed"])


def test_a_run_of_the_same_configuration_is_shown_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    games: dict[str, list[str] | None] = {"jumper": ["stage1.steps=10"], "heist": [], "maze": None}
    rows = [{**_row(game, "random policy", 0.0), "env_steps": None, "mean": 3.5} for game in games]
    content = {"rows": rows, "made": {game: {"overrides": overrides} for game, overrides in games.items()}}
    monkeypatch.setattr(reference, "_results", lambda preset: content)
    config = load_config("quick", overrides=["stage1.steps=10"])
    known = reference_returns(RunDir(tmp_path, config, "quick"))
    assert known == {("jumper", "random policy", None, None): 3.5}
    of_preset = reference_returns(RunDir(tmp_path, load_config("quick"), "quick"))
    assert of_preset == {("heist", "random policy", None, None): 3.5}
    run = read_run(write_run(tmp_path / "run", ["jumper", "heist"], overrides=["stage1.steps=10"]).path)
    assert {row.title: row.reference for row in policy_rows(run, "jumper") if row.reference} == {"random policy": 3.5}
    assert not any(row.reference for row in policy_rows(run, "heist"))
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


def test_the_readme_shows_the_results_that_the_package_holds():
    readme = results.README.read_text()
    assert results.with_results(readme, json.loads((results.FOLDER / "quick.json").read_text())) == readme


def _row(game: str, method: str, normalized: float) -> dict[str, Any]:
    return {"game": game, "method": method, "labels": None, "normalized": normalized}


def test_means_of_the_table_are_of_all_games_and_a_game_counts_1_at_most():
    rows = [
        *(_row(game, "random policy", 0.1) for game in ("maze", "heist")),
        *(_row(game, "PPO from scratch", value) for game, value in (("maze", 3.0), ("heist", 0.4))),
        _row("maze", "BC on all true labels", 0.5),
    ]
    probe = {"probe": 0.75, "untrained": 0.5, "supervised": 1.0}
    probes = {"maze": {"0": probe, "1": {**probe, "probe": 0.25}}, "heist": {"0": {**probe, "supervised": None}}}
    settings = {"maze": [], "heist": ["stage1.steps=10"]}
    content = {
        **{"rows": rows, "by_seed": {"0": rows[:1], "1": []}, "probes": probes},
        "made": {game: {"overrides": overrides} for game, overrides in settings.items()},
    }
    made = results.tables(content)
    lines = made["quick"].splitlines()
    assert lines[2:] == [
        "| maze | 0, 1 | 0.10 | - | - | - | - | - | 0.50 | - | - | 3.00 | 0.50 (0.50, 1.00) |",
        "| heist* | 0 | 0.10 | - | - | - | - | - | - | - | - | 0.40 | 0.75 (0.50, -) |",
        "| mean* | | 0.10 | - | - | - | - | - | - | - | - | 0.70 | |",
    ]
    assert [line.split(" | ")[:3] for line in made["seeds"].splitlines()[2:]] == [
        ["| maze", "0", "0.10"],
        ["| maze", "1", "-"],
    ]


def test_results_replace_those_of_their_games_alone():
    def content(games: dict[str, list[str]], value: float) -> dict[str, Any]:
        rows = [_row(game, "PPO from scratch", value) for game in games]
        by_seed = {
            seed: [row for row in rows if seed in games[row["game"]]]
            for seed in {s for seeds in games.values() for s in seeds}
        }
        made = {game: {"seeds": {seed: {"commit": str(value)} for seed in seeds}} for game, seeds in games.items()}
        probes = {game: {seed: {"supervised": None} for seed in seeds} for game, seeds in games.items()}
        return {"rows": rows, "by_seed": by_seed, "made": made, "probes": probes, "interval": str(value)}

    old = content({"climber": ["0"], "maze": ["0", "1"], "ninja": ["0"]}, 0.1)
    old["rows"].append(_row(ALL_GAMES, "PPO from scratch", 0.1))
    old["probes"]["maze"] = {"0": {"supervised": 0.8}, "1": {"supervised": 0.9}}
    found = results.merged(content({"maze": ["0"], "heist": ["0", "2"]}, 0.2), old)
    values = {"climber": 0.1, "heist": 0.2, "maze": 0.2, "ninja": 0.1}
    assert [(row["game"], row["normalized"]) for row in found["rows"]] == list(values.items())
    assert {seed: [row["game"] for row in rows] for seed, rows in found["by_seed"].items()} == {
        "0": list(values),
        "1": [],
        "2": ["heist"],
    }
    assert found["interval"] == "0.2"
    assert found["probes"]["heist"] == {"0": {"supervised": None}, "2": {"supervised": None}}
    assert found["made"]["heist"] == {"seeds": {"0": {"commit": "0.2"}, "2": {"commit": "0.2"}}}
    # The supervised model of the same game and seed is still true.
    assert found["probes"]["maze"] == {"0": {"supervised": 0.8}}
    assert found["made"]["maze"] == {"seeds": {"0": {"commit": "0.2", "supervised": {"commit": "0.1"}}}}
    again = results.merged(content({"maze": ["0"]}, 0.3), found)
    assert again["made"]["maze"] == {"seeds": {"0": {"commit": "0.3", "supervised": {"commit": "0.1"}}}}
