"""Damaged files of a run directory: one short sentence that names the file, or a result that is right."""

import json
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from file_mutations import Mutation, damage, damage_json, damage_lines, damage_yaml

from lapo_cli.core.config import Config
from lapo_cli.core.config_loading import load_config
from lapo_cli.core.data.arrays import load_array
from lapo_cli.core.errors import LapoError
from lapo_cli.core.run_dir import RunDir, StageDir, load_weights, read_about
from lapo_cli.core.training.metrics import read_metrics

_KEY = {"stage": "idm", "seed": 0, "inputs": {"train": "abc"}, "config": {"lr": 3e-4, "labels": [16, 32]}}
_COUNTS = [100, pytest.param(5000, marks=pytest.mark.slow)]


def _net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 4)


def _weights(file: Path) -> list[list[float]]:
    net = torch.nn.Linear(4, 4)
    load_weights(file, {"net": net})
    values: list[list[float]] = net.weight.tolist()
    assert np.isfinite(values).all()
    return values


def _state(file: Path) -> Any:
    state = StageDir(file.parent).load_state()
    assert state is not None
    return {**state, "net": {name: value.tolist() for name, value in state["net"].items()}}


def _about(file: Path) -> str:
    about = read_about(file)
    assert isinstance(about["game"], str)
    return str(about["stage"])


def _config_of_stage(file: Path) -> Any:
    content = StageDir(file.parent).read_config()
    return {name: content[name] for name in ("key", *_KEY)}


def _config(file: Path) -> Config:
    config = load_config("quick", file)
    assert Config.model_validate(config.model_dump()) == config
    return config


def _array(file: Path) -> Any:
    array = load_array(file)
    assert array.dtype.kind in "biuf"
    return array.dtype.str, array.tolist()


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        read: what reads it.
        mutate: what damages it.
        exact: whether what is read must be what was written, because a digest protects it.
    """

    file: str
    read: Callable[[Path], Any]
    mutate: Mutation
    exact: bool


_TARGETS = {
    "done": Target("run/maze/seed-0/idm/done.json", lambda file: StageDir(file.parent).done(), damage_json, True),
    "stage-config": Target("run/maze/seed-0/idm/config.yaml", _config_of_stage, damage_yaml, True),
    "weights": Target("run/maze/seed-0/idm/model.safetensors", _weights, damage, True),
    "about": Target("run/maze/seed-0/idm/model.safetensors", _about, damage, False),
    "loose weights": Target("loose.safetensors", _weights, damage, False),
    "state": Target("run/maze/seed-0/policy/state.pt", _state, damage, True),
    "metrics": Target(
        "run/maze/seed-0/policy/metrics.jsonl", lambda file: read_metrics(file.parent), damage_lines, False
    ),
    "run": Target("run/run.yaml", lambda file: RunDir.open(file.parent).config, damage_yaml, False),
    "configuration": Target("mine.yaml", _config, damage_yaml, False),
    "array": Target("array.npy", _array, damage, False),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of file, whole."""
    folder = tmp_path_factory.mktemp("fuzz")
    run = RunDir.create(folder / "run", load_config("quick"), "quick")
    stage = run.seed_dir("maze", 0).stage("idm")
    stage.begin(_KEY, fresh=False)
    about = {"stage": "idm", "game": "maze", "seed": 0}
    stage.save_weights({"net": _net()}, about)
    stage.finish({"probe/accuracy": 0.75, "test_accuracy": {"16": 0.5}, "nothing": None})
    StageDir(folder).save_weights({"net": _net()}, about, "loose.safetensors")
    policy = run.seed_dir("maze", 0).stage("policy")
    policy.begin(_KEY, fresh=False)
    policy.save_state({"step": 3, "net": _net().state_dict()})
    lines = [{"step": step, "seconds": step / 2, "losses/total": 0.1 * step} for step in range(20)]
    (policy.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    np.save(folder / "array.npy", np.arange(100, dtype=np.float32).reshape(20, 5))
    (folder / "mine.yaml").write_text("stage1: {lr: 2e-3, steps: 77}\noffline: {labels: [16, 32]}\nprecision: fp32\n")
    return folder


def _attempt(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """What a call gives, or the message with which it refuses; any other exception is a failure."""
    try:
        return call(), None
    except LapoError as error:
        return None, str(error)


@pytest.mark.parametrize("name", _TARGETS)
@pytest.mark.parametrize("count", _COUNTS)
def test_damage_is_reported_in_a_sentence_or_does_not_matter(folder: Path, name: str, count: int) -> None:
    target = _TARGETS[name]
    file = folder / target.file
    whole = file.read_bytes()
    expected = target.read(file)
    rng = random.Random(zlib.crc32(name.encode()))
    refused = 0
    try:
        for _ in range(count):
            damaged = target.mutate(rng, whole)
            file.write_bytes(damaged)
            found, message = _attempt(partial(target.read, file))
            if message is None:
                assert not target.exact or found == expected, damaged
            else:
                refused += 1
                assert file.name in message
                assert len(message) < 1000
                assert "pickle" not in message
    finally:
        file.write_bytes(whole)
    assert refused > count // 4


@pytest.mark.parametrize("count", _COUNTS)
def test_any_override_is_accepted_or_explained(count: int) -> None:
    rng = random.Random(0)
    words = ["stage1.lr=3e-4", "offline.labels=[16, 32]", "online.action_head={start: 1, peak: 2, lr: 0.1}"]
    for _ in range(count):
        word = damage(rng, rng.choice(words).encode()).decode(errors="replace")
        config, message = _attempt(partial(load_config, "quick", None, [word]))
        if message is None:
            assert yaml.safe_dump(config.model_dump(mode="json"))
        else:
            assert len(message) < 1000
