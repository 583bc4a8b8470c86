"""Files of finished runs, written without training anything: what the report reads."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lapo_cli.core.config_loading import load_config
from lapo_cli.core.evaluation import evaluate, measurements, sheets
from lapo_cli.core.files import atomic_write_json
from lapo_cli.core.run_dir import Done, RunDir, SeedDir, StageDir

STAGES = {
    "idm": "inverse dynamics model",
    "policy": "latent policy",
    "offline": "LAPO decoded offline",
    "online": "LAPO fine-tuned online",
    "scratch": "PPO from scratch",
}
NAMES = ("LEFT", "RIGHT", "UP")
_SIZE = 8


def write_run(
    path: Path,
    games: Sequence[str] = ("maze",),
    seeds: Sequence[int] = (0,),
    *,
    stages: Sequence[str] = tuple(STAGES),
    unfinished: Sequence[str] = (),
    actions: bool = True,
    acting: bool = True,
    labels: dict[str, str] | None = None,
    names: Sequence[str] = NAMES,
    overrides: Sequence[str] = ("stage1.steps=99",),
) -> RunDir:
    """A run of these games and seeds, each with these stages, evaluated and measured."""
    run = RunDir.create(path, load_config("quick", overrides=overrides), "quick")
    for game in games:
        for seed in seeds:
            folder = run.seed_dir(game, seed)
            folder.path.mkdir(parents=True)
            for name in stages:
                label = {**STAGES, **(labels or {})}[name]
                write_stage(folder.stage(name), label, done=name not in unfinished)
            _evaluations(folder, [name for name in stages if name not in unfinished], acting, labels or {})
            _measurements(folder, actions, names, imagined="idm" in stages)
    return run


def write_stage(folder: StageDir, label: str, *, done: bool = True, results: dict[str, Any] | None = None) -> None:
    """A stage with metrics that get better, finished or not."""
    folder.begin({"stage": folder.name, "precision": "fp32"}, fresh=False, label=label, device="a CPU")
    lines: list[dict[str, Any]] = []
    for number, step in enumerate((0, 100, 200)):
        line: dict[str, Any] = {"step": step, "seconds": 1.0 + number, "losses/total": 1.0 / (1 + number)}
        if folder.name == "idm":
            line |= {"val/code_usage": 0.5, "probe/accuracy": 0.5 + 0.1 * number, "probe/majority_baseline": 0.4}
        if folder.name in ("online", "scratch"):
            line |= {"eval/episodic_return": 5.0 + number, "eval/episodic_return_std": 1.0, "eval/episodes": 16}
        lines.append(line)
    (folder.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if done:
        probe = {"probe/accuracy": 0.7, "probe/majority_baseline": 0.4, "probe/untrained": 0.5}
        found = {"val/code_usage": 0.5, **probe} if folder.name == "idm" else {}
        folder.finish(found if results is None else results)


def _cells(count: int) -> Any:
    return np.random.default_rng(count).integers(0, 255, (count, _SIZE, _SIZE, 3), np.uint8)


def _film(file: Path, levels: int, frames: int, **more: Any) -> dict[str, Any]:
    about = sheets.write(file, _cells(levels * frames))
    return {**about, "levels": levels, "every": 2, "lengths": [frames] * levels, **more}


def _evaluations(folder: SeedDir, stages: Sequence[str], acting: bool, labels: dict[str, str]) -> None:
    if not acting:
        return
    policies: list[tuple[str, str, str, int | None, int]] = [("random", "", "random policy", None, 0)]
    for order, name in enumerate(stages, 10):
        label = {**STAGES, **labels}[name]
        if name == "offline":
            policies += [(f"offline-{n}", name, label, n, order) for n in (16, 256)]
        elif name in ("online", "scratch"):
            policies.append((name, name, label, None, order))
    for number, (name, stage, method, of_labels, order) in enumerate(policies):
        file = folder.path / evaluate.FOLDER / f"{name}.json"
        done: Done | None = folder.stage(stage).done() if stage else None
        content = {
            "key": "k",
            "stage": stage,
            "fingerprint": evaluate.policy_fingerprint(done, name) if done else "uniform",
            "order": order,
            "name": name,
            "method": method,
            "labels": of_labels,
            "env_steps": 200 if stage in ("online", "scratch") else None,
            "reference_returns": [4.0, 10.0],
            "returns": [4.0 + number, 5.0 + number + folder.seed],
            "film": _film(file.with_suffix(".webp"), 3, 4, returns=[1.0, 2.0, 3.0]),
        }
        atomic_write_json(file, content)


def _measurements(folder: SeedDir, actions: bool, names: Sequence[str], *, imagined: bool) -> None:
    where = folder.path / measurements.FOLDER
    store = {
        "num_frames": 1000,
        "frame_shape": [64, 64, 3],
        "num_episodes": 3,
        "num_actions": len(names) if actions else None,
        "source": "a test",
        "fingerprint": "f" * 64,
    }
    demonstrations = {
        "method": measurements.DEMONSTRATIONS,
        "stores": {"train": store, "test": store},
        "action_names": list(names) if actions else [],
        "reference_returns": [4.0, 10.0],
        "film": _film(where / "demonstrations.webp", 1, 4),
        "returns": [10.0, 10.0] if actions else [],
    }
    atomic_write_json(where / "demonstrations.json", demonstrations)
    if not imagined:
        return
    rng = np.random.default_rng(0)
    clusters = np.arange(60) % 2
    latents = {
        "method": "PCA",
        "points": np.round(rng.normal(clusters[:, None] * 5.0, 1, (60, 2)), 3).tolist(),
        "clusters": clusters.tolist(),
        "actions": (clusters + (np.arange(60) % 10 == 0)).tolist() if actions else None,
        "purity": {"map": 0.8, "latent": 0.9, "chance": 0.4, "neighbours": 10} if actions else None,
        "codes": [[10, 20, 0, 30], [60, 0, 0, 0]],
    }
    atomic_write_json(where / "latents.json", latents)
    errors = {"rollout": [0.1, 0.2, 0.5], "one step": [0.1, 0.1, 0.1], "copying": [0.2, 0.3, 0.4]}
    content = {
        "horizon": 3,
        "films": {**sheets.write(where / "rollouts.webp", _cells(3 * 4)), "levels": 3},
        "strips": sheets.write(where / "strips.webp", _cells(4 * 2)),
        "sequences": 7,
        "candidates": 7,
        "errors": errors,
    }
    atomic_write_json(where / "imagination.json", content)
