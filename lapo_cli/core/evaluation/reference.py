"""What the presets gave when the maintainers of lapo ran them, to be shown beside a person's own results.

``lapo_cli/results/PRESET.json`` is a summary made of the ``summary.json`` of several runs, with what made the rows of
each game: commits, device, and the overrides of today's preset that give the configuration that was run, or None where
today's code cannot be configured so.
"""

import json
from importlib import resources
from typing import Any

from lapo_cli.core.config import Config
from lapo_cli.core.config_loading import load_config, presets
from lapo_cli.core.evaluation.summary import Key
from lapo_cli.core.run_dir import RunDir
from lapo_cli.core.training.stage import STAGES

# What changes neither what a policy learns nor what its mean return is an estimate of.
_ASIDE: Any = {
    "checkpoint_seconds": True,
    "extra_stages": True,
    "evaluation": {"episodes", "num_envs", "curve_points", "curve_episodes"},
}


def reference_returns(run: RunDir) -> dict[tuple[str, *Key], float]:
    """Mean returns by game, method, labels and environment steps, of games that were run with this configuration."""
    content, method = _results(run.preset), _method(run.config)
    if content is None:
        return {}
    same = {
        game
        for game, made in content["made"].items()
        if made["overrides"] is not None and _method(load_config(run.preset, overrides=made["overrides"])) == method
    }
    return {
        (row["game"], row["method"], row["labels"], row["env_steps"]): row["mean"]
        for row in content["rows"]
        if row["game"] in same
    }


def bc_shares() -> dict[str, float]:
    """Game -> what BC on all true labels reached in ``quick``: a share of the demonstrations' return above random play.

    Games for which it was not run are left out.
    """
    content = _results("quick")
    assert content is not None
    bc = STAGES.get("bc").label
    return {row["game"]: row["share"] for row in content["rows"] if row["method"] == bc}


def _results(preset: str) -> dict[str, Any] | None:
    file = resources.files("lapo_cli").joinpath("results", f"{preset}.json")
    if preset not in presets() or not file.is_file():
        return None
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def _method(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=_ASIDE)
