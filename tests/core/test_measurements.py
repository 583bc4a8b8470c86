"""What is measured of latent actions and of the world model, on known data and on a tiny training."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lapo_cli.core.data.store import open_store
from lapo_cli.core.evaluation import evaluate, imagination, latents, measurements, sheets
from lapo_cli.core.report.results import read_stage, trusted_steps
from lapo_cli.core.training.context import Context
from tests.core.tiny_config import run


def _blobs(each: int = 40) -> tuple[latents.Matrix, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), each)
    return (rng.normal(0, 0.1, (3 * each, 6)) + 5 * np.eye(6)[labels]).astype(np.float32), labels


def test_clusters_are_the_groups_that_there_are() -> None:
    z, labels = _blobs()
    clusters, medoids = latents.cluster(z, seed=0, count=3)
    assert len({(a, b) for a, b in zip(labels, clusters, strict=True)}) == 3
    assert [int(clusters[m]) for m in medoids] == [0, 1, 2]
    same = latents.cluster(np.zeros((10, 4), np.float32), seed=0)
    assert same[0].tolist() == [0] * 10


def test_purity_is_1_for_separate_groups_and_chance_for_mixed_ones() -> None:
    z, labels = _blobs()
    assert latents.purity(z, labels) == 1.0
    shuffled = np.random.default_rng(1).permutation(labels)
    assert latents.purity(z, shuffled) == pytest.approx(1 / 3, abs=0.08)


def test_the_projection_keeps_the_largest_variance() -> None:
    rng = np.random.default_rng(2)
    z = rng.normal(0, 1, (200, 5)).astype(np.float32) * np.array([1, 9, 1, 5, 1], np.float32)
    points = latents.principal(z, 2)
    centred = z - z.mean(0)
    assert abs(np.corrcoef(points[:, 0], centred[:, 1])[0, 1]) > 0.99
    assert abs(np.corrcoef(points[:, 1], centred[:, 3])[0, 1]) > 0.98
    assert latents.principal(z[:, :1], 2).shape == (200, 2)


def test_a_rollout_is_trusted_until_repeating_the_first_frame_is_better() -> None:
    def trusted(rollout: list[float], copying: list[float]) -> int:
        return trusted_steps({"rollout": rollout, "copying": copying, "one step": []})

    assert trusted([1, 2, 5, 1], [2, 3, 4, 9]) == 2
    assert trusted([3], [2]) == 0
    assert trusted([1, 1], [2, 2]) == 2


class _Copying:
    """A world model that predicts no change."""

    def step(self, before: torch.Tensor, now: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return now


def test_one_sequence_is_enough_for_a_strip(tmp_path: Path) -> None:
    real, z = torch.rand(1, 4, 3, 16, 16) - 0.5, torch.zeros(1, 2, 8)
    about = imagination._strips(tmp_path / "strips.webp", _Copying(), real, z)  # type: ignore[arg-type]
    assert sheets.read(tmp_path / "strips.webp", about).shape == (4, 16, 16, 3)


def test_measurements_are_made_once_and_again_when_stage_1_changed(context: Callable[..., Context]) -> None:
    ctx = context()
    run(ctx, "idm")
    measurements.measure(ctx)
    folder = ctx.seed_dir.path / measurements.FOLDER
    names = {"demonstrations", "latents", "imagination"}
    assert {file.stem for file in folder.glob("*.json")} == names
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    measurements.measure(ctx)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before

    found = json.loads((folder / "latents.json").read_text())
    assert len(found["points"]) == len(found["clusters"]) == len(found["actions"]) <= latents.WINDOWS
    assert sum(found["codes"][0]) == len(found["points"]) * 4  # positions
    imagined = json.loads((folder / "imagination.json").read_text())
    assert imagined["films"]["levels"] == max(found["clusters"]) + 2
    films = sheets.read(folder / "rollouts.webp", imagined["films"])
    of_film = films.reshape(imagined["films"]["levels"], imagined["horizon"] + 1, *films.shape[1:])
    assert (of_film[:, 0] == of_film[:1, 0]).all()  # All begin with the real frame.
    assert len(imagined["errors"]["rollout"]) == imagined["horizon"]
    # A rollout's first step is a prediction from real frames.
    assert imagined["errors"]["rollout"][0] == pytest.approx(imagined["errors"]["one step"][0], rel=1e-3)

    gain = imagined["strips"]["error_gain"]
    _, after, predicted, error = (
        sheets.read(folder / "strips.webp", imagined["strips"]).reshape(-1, 4, 16, 16, 3).swapaxes(0, 1).astype(int)
    )
    expected = np.minimum(gain * np.abs(predicted - after).max(-1, keepdims=True), 255)
    assert np.abs(error - expected).max() <= gain + 1  # Predictions are rounded to 256 levels before.
    assert error.max() > 120

    again = context("stage1.lr=1e-3")
    run(again, "idm")
    measurements.measure(again)
    assert json.loads((folder / "latents.json").read_text())["key"] != found["key"]


def test_what_two_ask_for_at_once_is_measured_once(context: Callable[..., Context]) -> None:
    ctx, made = context(), []

    def make(folder: Path) -> dict[str, Any]:
        made.append(folder)
        time.sleep(0.3)
        return {"number": len(made)}

    with ThreadPoolExecutor(2) as both:
        asked = [both.submit(measurements._kept, ctx, "slow", "of this", make) for _ in range(2)]
        results = [one.result() for one in asked]
    assert results[0] == results[1]
    assert len(made) == 1


def test_rollouts_stay_within_episodes(context: Callable[..., Context]) -> None:
    store = open_store(context().data_dir, "maze", "test")
    horizon, starts = imagination._starts(store)
    episode = np.cumsum(store.episode_starts)
    assert 1 <= horizon <= imagination.HORIZON
    assert (episode[starts - 1] == episode[starts + horizon]).all()


def test_a_policy_is_evaluated_and_filmed_once(context: Callable[..., Context]) -> None:
    ctx = context()
    (random,) = evaluate.candidates(ctx)
    returns = evaluate.episodic_returns(ctx, random)
    file = ctx.seed_dir.path / evaluate.FOLDER / "random.json"
    content = json.loads(file.read_text())
    film = content["film"]
    assert film["levels"] == 4  # as many as there are environments
    assert film["returns"] == returns.tolist()
    cells = sheets.read(file.with_suffix(".webp"), film)
    assert len(cells) == 4 * max(film["lengths"])
    assert (cells[0] != cells[len(cells) // 4]).any()  # different levels
    before = file.stat().st_mtime_ns
    assert (evaluate.episodic_returns(ctx, random) == returns).all()
    assert file.stat().st_mtime_ns == before


def test_evaluations_on_the_way_are_logged_and_do_not_touch_training(context: Callable[..., Context]) -> None:
    digests = []
    for words in (("evaluation.curve_points=2",), ("evaluation.curve_points=0",)):
        ctx = context(*words, "online.steps=256")
        result = run(ctx, "scratch")
        stage = read_stage(ctx.seed_dir.stage("scratch"))
        done = ctx.seed_dir.stage("scratch").done()
        assert done is not None
        digests.append(done["outputs"])
        assert result.results["env_steps"] == 256
        assert list(stage.evaluations) == ([0, 128, 256] if words == ("evaluation.curve_points=2",) else [])
        assert all(episodes == 2 for _, _, episodes in stage.evaluations.values())
        ctx.seed_dir.path.rename(ctx.seed_dir.path.with_name(f"aside-{len(digests)}"))
    assert digests[0] == digests[1]


def test_an_imagined_step_uses_the_two_frames_and_the_latent_action(context: Callable[..., Context]) -> None:
    ctx = context()
    run(ctx, "idm")
    world = imagination.Imagination(ctx)
    a, b = torch.rand(2, 1, 3, 16, 16) - 0.5
    z = torch.randn(2, 1, world.idm.quantizer.la_dim)
    rolled = world.roll(a, b, z.transpose(0, 1))
    first = world.step(a, b, z[0])
    assert torch.allclose(rolled[:, 0], first, atol=1e-5)
    assert torch.allclose(rolled[:, 1], world.step(b, first, z[1]), atol=1e-5)
