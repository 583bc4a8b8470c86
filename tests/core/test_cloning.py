"""Cloning of true and inferred actions: targets, plain equivalence, resuming between clones, and the table."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from lapo_cli.core.config import Config
from lapo_cli.core.data.batches import BatchSampler
from lapo_cli.core.pipeline import Options, plan, run_all
from lapo_cli.core.progress import Silent, Task
from lapo_cli.core.run_dir import RunDir
from lapo_cli.core.training.agents import DirectAgent
from lapo_cli.core.training.cloning import Targets, with_true_actions
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.latent_labels import labelled_frames
from lapo_cli.core.training.stage import stage_seed
from tests.core.tiny_config import run
from tests.reference.plain_models import PlainEncoder, plain_normalize

MakeContext = Callable[..., Context]
_ABLATION = ("idm-no-quantizer", "policy-no-quantizer", "online-no-quantizer", "rl-only-no-quantizer")
_BASELINES = ("supervised-idm", "rl-only", "bc", "bc-few", "vpt", *_ABLATION)


@given(st.lists(st.integers(0, 99), min_size=1, max_size=30, unique=True), st.integers(1, 30), st.integers(0, 9))
def test_known_actions_replace_inferred_ones_and_no_others(windows: list[int], known: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    actions = rng.integers(0, 5, 100).astype(np.uint8)
    order = rng.permutation(np.array(windows))
    labelled = order[:known]
    guesses = Targets(np.sort(order), rng.random((len(order), 5)).astype(np.float16))
    mixed = with_true_actions(guesses, _Store(actions), labelled)  # type: ignore[arg-type]
    for row, window in enumerate(mixed.windows):
        if window in labelled:
            assert mixed.actions[row].argmax() == actions[window]
            assert mixed.actions[row].sum() == 1
        else:
            assert np.array_equal(mixed.actions[row], guesses.actions[row])


class _Store:
    def __init__(self, actions: "np.typing.NDArray[np.uint8]") -> None:
        self.actions = actions


def test_the_clone_of_all_labels_ends_at_the_weights_of_the_plain_loop(context: MakeContext) -> None:
    ctx = context("stage2.steps=4", "stage2.warmup=2")
    run(ctx, "bc")
    train = ctx.open_store("train")
    assert train.actions is not None
    torch.manual_seed(stage_seed(ctx, "bc"))
    fresh = DirectAgent(1, 64, 15, ctx.compute).policy
    plain = PlainEncoder(3, 1, 64, 15)
    plain.load_state_dict(fresh.state_dict())
    optimizer = torch.optim.AdamW(plain.parameters(), weight_decay=0.01)
    sampler = BatchSampler(np.sort(labelled_frames(ctx, train)), 16, stage_seed(ctx, "frames of bc"))
    for step, rate in enumerate((2e-6, 1.01e-4, 2e-4, 1e-4)):
        optimizer.param_groups[0]["lr"] = rate
        rows = sampler.indices(step)
        logits = plain(plain_normalize(torch.from_numpy(train.frames[rows])))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(train.actions[rows].astype(np.int64)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learnt = safetensors.torch.load_file(ctx.seed_dir.path / "bc" / "model.safetensors")
    for name, value in plain.state_dict().items():
        moved = (value - fresh.state_dict()[name]).norm()
        assert (learnt[f"agent.policy.{name}"] - value).norm() < 0.05 * moved, name


class _InterruptIn:
    """Progress that interrupts when the task of that name reports for the first time."""

    def __init__(self, name: str) -> None:
        self._name = name

    @contextmanager
    def task(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        wanted = self._name in name

        class Watched:
            def update(self, done: int, **metrics: float) -> None:
                if wanted:
                    os.kill(os.getpid(), signal.SIGINT)

        yield Watched()

    def log(self, message: str) -> None:
        pass


@pytest.mark.parametrize(
    ("stage", "interrupted"),
    [
        ("bc-few", ", 64 labels"),
        ("vpt", "supervised inverse dynamics model, 64 labels"),
        ("vpt", "VPT (supervised relabelling), 64 labels"),
    ],
)
def test_what_is_finished_is_kept_when_something_later_is_interrupted(
    context: MakeContext, tmp_path: Path, stage: str, interrupted: str
) -> None:
    words = ("stage2.steps=26", "offline.steps=26", "offline.labels=4,64", "model.policy_size=16")
    unbroken = context(*words)
    run(unbroken, stage)
    broken = replace(unbroken, seed_dir=replace(unbroken.seed_dir, path=tmp_path / "broken"))
    with pytest.raises(KeyboardInterrupt):
        run(replace(broken, progress=_InterruptIn(interrupted)), stage)
    first = broken.seed_dir.path / stage / "labels-4" / "model.safetensors"
    made = first.stat().st_mtime_ns
    assert broken.seed_dir.stage(stage).done() is None
    run(broken, stage)
    assert first.stat().st_mtime_ns == made
    for count in (4, 64):
        files = [ctx.seed_dir.path / stage / f"labels-{count}" / "model.safetensors" for ctx in (unbroken, broken)]
        one, other = (safetensors.torch.load_file(file) for file in files)
        for name, value in one.items():
            assert torch.equal(value, other[name]), (count, name)
    assert not list(broken.seed_dir.path.rglob("state.pt"))


def test_baselines_are_trained_when_they_are_wanted_and_are_in_the_table(
    tmp_path: Path, data_dir: Path, tiny: Callable[..., Config]
) -> None:
    made = RunDir.create(tmp_path / "run", tiny("model.policy_size=16"), "paper")
    options = Options("cpu", data_dir)
    run_all(made, ["maze"], [0], options, Silent())
    assert not any(made.seed_dir("maze", 0).stage(stage).path.exists() for stage in _BASELINES)
    summary = run_all(made, ["maze"], [0], replace(options, baselines=True), Silent())
    assert all(made.seed_dir("maze", 0).stage(stage).done() for stage in _BASELINES)
    titles = [row.title for row in summary.rows]
    assert titles[4:] == [
        "LAPO fine-tuned online, 512 steps",
        "LAPO fine-tuned online, RL only, 512 steps",
        "LAPO fine-tuned online, no quantizer, 512 steps",
        "LAPO fine-tuned online, RL only, no quantizer, 512 steps",
        "PPO from scratch, 512 steps",
        "BC on all true labels",
        "BC without latent actions, 4 labels",
        "BC without latent actions, 64 labels",
        "VPT (supervised relabelling), 4 labels",
        "VPT (supervised relabelling), 64 labels",
    ]
    accuracy = made.seed_dir("maze", 0).stage("supervised-idm").require_done("")["results"]["val/accuracy"]
    assert f"a supervised model: {accuracy:.2f}" in summary.notes[0]
    assert "times that of repeating the last frame" in summary.notes[1]
    assert summary.notes[2].startswith("maze/0-no-quantizer probe: ")
    assert "codes" not in summary.notes[3]
    assert {planned.state for planned in plan(made, ["maze"], [0], replace(options, baselines=True))} == {"done"}
