"""Relabelling: what the clones start from, offline and online, and that an interruption changes nothing."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray

from lapo_cli.core.config import Config
from lapo_cli.core.data.batches import gather_windows
from lapo_cli.core.envs.base import ENVIRONMENTS, EnvSpec, VecEnv
from lapo_cli.core.errors import BrokenEnvironmentError, UsageError
from lapo_cli.core.interrupts import interrupting
from lapo_cli.core.models.frames import normalize
from lapo_cli.core.models.impala import CompactTrunk, ImpalaTrunk
from lapo_cli.core.pipeline import Options, run_all
from lapo_cli.core.progress import Silent, Task
from lapo_cli.core.run_dir import RunDir, StageDir
from lapo_cli.core.stages import online_relabel, random_play, relabel
from lapo_cli.core.stages.relabel import decoded_targets
from lapo_cli.core.training.cloning import Targets
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.inverse_dynamics import LabelledVideo, inferred_targets, load_inverse_dynamics
from lapo_cli.core.training.metrics import EVALUATED, read_metrics
from lapo_cli.core.training.networks import build_supervised_idm, header
from lapo_cli.core.training.stage import stage_seed
from tests.core.tiny_config import run

MakeContext = Callable[..., Context]
_SMALL = (
    *("model.policy_size=16", "relabel.env_steps=256", "relabel.idm_steps=30"),
    *("relabel.steps=30", "relabel.lr=1e-9", "stage2.lr_start=0"),
)


def _weights(ctx: Context, folder: str) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = safetensors.torch.load_file(ctx.seed_dir.path / folder / "model.safetensors")
    return weights


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("clone", ["relabel/labels-64", "online-relabel/clone"])
def test_clones_start_from_the_latent_policy_where_they_are_to(context: MakeContext, clone: str, warm: bool) -> None:
    """At a learning rate of nothing they stay where they start."""
    ctx = context(*_SMALL, f"relabel.warm_start={str(warm).lower()}", "stage2.weight_decay=0", "online.steps=384")
    for name in ("idm", "policy", *(["random-play"] if "online" in clone else []), clone.split("/")[0]):
        run(ctx, name)
    start, cloned = _weights(ctx, "policy"), _weights(ctx, clone)
    for name in ("trunk.convs.0.weight", "trunk.convs.11.conv1.bias", "hidden.weight"):
        close = torch.allclose(cloned[f"agent.policy.{name}"], start[f"policy.{name}"], atol=1e-5)
        assert close == warm, name


@pytest.mark.parametrize("size", [{"policy_scale": 2}, {"policy_size": 32}])
def test_a_clone_of_another_size_cannot_start_from_the_latent_policy(
    context: MakeContext, size: dict[str, int]
) -> None:
    ctx = context(*_SMALL, "relabel.warm_start=true")
    for name in ("idm", "policy"):
        run(ctx, name)
    larger = ctx.config.model.model_copy(update=size)
    with pytest.raises(UsageError, match="needs a network of its size"):
        run(replace(ctx, config=ctx.config.model_copy(update={"model": larger})), "relabel")


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_targets_are_the_mean_of_the_inferred_probabilities_at_a_temperature(
    context: MakeContext, tmp_path: Path, temperature: float
) -> None:
    ctx, folders = context(), [StageDir(tmp_path / name) for name in ("one", "other")]
    torch.manual_seed(0)
    models = [build_supervised_idm(ctx.config.model, 15).requires_grad_(False) for _ in folders]
    for folder, idm in zip(folders, models, strict=True):
        folder.path.mkdir()
        folder.save_weights({"idm": idm}, header(ctx, folder))
    video = ctx.open_store("train").video()
    windows = video.windows(640)
    found = inferred_targets(ctx, folders, video, windows, temperature)
    assert np.array_equal(inferred_targets(ctx, folders, video, windows, temperature).actions, found.actions)
    frames = torch.from_numpy(gather_windows(video.frames, windows))
    of_models = [idm.infer(normalize(frames, idm.size)).softmax(1) for idm in models]
    powers = (sum(of_models) / 2) ** (1 / temperature)
    assert np.array_equal(found.windows, windows)
    assert np.allclose(found.actions, powers / powers.sum(1, keepdim=True), atol=1e-3)


def test_targets_of_latent_actions_are_the_decoded_probabilities(context: MakeContext) -> None:
    decoder = torch.nn.Linear(4, 15).requires_grad_(False)
    latents = np.random.default_rng(0).standard_normal((600, 4)).astype(np.float16)
    found = decoded_targets(context(), decoder, latents, windows := np.arange(1, 601))
    odds = decoder(torch.from_numpy(latents).float()).exp()
    assert found.windows is windows
    assert np.allclose(found.actions, odds / odds.sum(1, keepdim=True), atol=1e-3)


def test_few_labels_are_decoded_by_the_configured_decoder(
    context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def targets(ctx: Context, decoder: torch.nn.Module, *args: Any) -> Targets:
        seen.append(type(decoder))
        return decoded_targets(ctx, decoder, *args)

    monkeypatch.setattr(relabel, "decoded_targets", targets)
    ctx = context(*_SMALL, "offline.decoder=linear")
    for name in ("idm", "policy", "relabel"):
        run(ctx, name)
    assert seen == [torch.nn.Linear] * 2


def test_what_a_stage_does_not_read_does_not_start_it_over(context: MakeContext) -> None:
    ctx = context(*_SMALL, "online.steps=384")
    for name in ("idm", "policy", "relabel", "random-play", "online-relabel"):
        run(ctx, name)
    of_labels = ctx.config.offline.model_copy(update={"decoder": "linear", "labels": (8,)})
    of_play = ctx.config.relabel.model_copy(update={"play_temperature": 0.5})
    assert run(replace(ctx, config=ctx.config.model_copy(update={"offline": of_labels})), "online-relabel").skipped
    for name in ("relabel", "random-play"):
        assert run(replace(ctx, config=ctx.config.model_copy(update={"relabel": of_play})), name).skipped
    assert not run(replace(ctx, config=ctx.config.model_copy(update={"offline": of_labels})), "relabel").skipped


def test_a_clone_of_random_play_takes_the_configured_temperature(
    context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def targets(*args: Any) -> Targets:
        seen.append(args[-1])
        return inferred_targets(*args)

    monkeypatch.setattr(online_relabel, "inferred_targets", targets)
    ctx = context(*_SMALL, "relabel.play_temperature=0.25", "online.steps=384")
    for name in ("idm", "policy", "random-play", "online-relabel"):
        run(ctx, name)
    assert seen == [0.25]


def test_random_play_is_labelled_with_the_actions_that_led_from_frame_to_frame(
    context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    played: list[LabelledVideo] = []

    def train(ctx: Context, stage: str, folder: StageDir, title: str, frames: LabelledVideo, *_: Any, **__: Any) -> Any:
        played.append(frames)
        raise KeyboardInterrupt

    monkeypatch.setattr(random_play, "train_inverse_dynamics", train)
    ctx = context(*_SMALL, "relabel.env_steps=1024", "online.steps=2048")
    with pytest.raises(KeyboardInterrupt):
        run(ctx, "random-play")
    (play,), num_envs = played, ctx.config.online.ppo.num_envs
    frames = play.video.frames.reshape(num_envs, -1, *play.video.frames.shape[1:])
    actions = play.actions.reshape(num_envs, -1)
    with closing(ctx.env.make_envs(num_envs, stage_seed(ctx, "random play"))) as envs:
        centres = []
        previous = np.ones(num_envs, np.bool_)
        for step in range(frames.shape[1]):
            _, shown, first = envs.observe()
            assert np.array_equal(frames[:, step], shown)
            if step >= 2:
                centres += [n * frames.shape[1] + step - 1 for n in np.flatnonzero(~previous & ~first)]
            previous = first.copy()
            envs.act(actions[:, step])
    assert frames.shape[1] == 1024 // num_envs + 1
    assert len(centres) < num_envs * (frames.shape[1] - 2), "no episode has ended"
    assert sorted(centres) == play.windows.tolist()


def test_the_model_of_stage_1_is_fine_tuned_on_random_play(context: MakeContext) -> None:
    """At a learning rate of nothing it stays where it starts."""
    still = [f"stage1.{key}=1e-9" for key in ("lr", "lr_start", "lr_end")]
    ctx = context(*_SMALL, "online.steps=384", *still, "stage1.weight_decay=0")
    for name in ("idm", "policy", "random-play", "online-relabel"):
        run(ctx, name)
    start, tuned = _weights(ctx, "idm"), _weights(ctx, "online-relabel/idm")
    for name in ("trunk.convs.0.weight", "trunk.convs.11.conv1.bias"):
        assert torch.allclose(tuned[f"idm.{name}"], start[f"idm.{name}"], atol=1e-5), name


def test_the_fine_tuned_model_is_the_network_of_stage_1_whatever_is_configured(context: MakeContext) -> None:
    ctx = context(*_SMALL, "online.steps=384")
    for name in ("idm", "policy", "random-play"):
        run(ctx, name)
    larger = ctx.config.model.model_copy(update={"idm_scale": 2})
    run(replace(ctx, config=ctx.config.model_copy(update={"model": larger})), "online-relabel")
    start, tuned = _weights(ctx, "idm"), _weights(ctx, "online-relabel/idm")
    assert all(value.shape == start[name].shape for name, value in tuned.items() if name.startswith("idm.trunk"))


@pytest.mark.parametrize(("network", "trunk"), [("impala", ImpalaTrunk), ("compact", CompactTrunk)])
def test_the_model_of_random_play_sees_what_the_policy_sees(
    context: MakeContext, network: str, trunk: type[torch.nn.Module]
) -> None:
    """At a learning rate of nothing it stays where it starts."""
    still = [f"stage1.{key}=1e-9" for key in ("lr", "lr_start", "lr_end")]
    policy = ("model.policy_size=32", "model.frame_size=16", f"relabel.idm_network={network}")
    ctx = context(*_SMALL, *policy, *still, "stage1.weight_decay=0")
    results = run(ctx, "random-play").results
    assert 0 <= results["val/accuracy"] <= 1
    assert results["env_steps"] == 256
    learnt = load_inverse_dynamics(ctx, ctx.seed_dir.stage("random-play"))
    assert isinstance(learnt.trunk, trunk)
    assert learnt.size == 32
    torch.manual_seed(stage_seed(ctx, "random-play"))
    fresh = build_supervised_idm(ctx.config.model, 15, network)
    for mine, its in zip(learnt.parameters(), fresh.parameters(), strict=True):
        assert torch.allclose(mine, its, atol=1e-5)


def test_held_out_frames_need_no_actions(context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store = Context.open_store
    monkeypatch.setattr(Context, "open_store", lambda *args: replace(open_store(*args), actions=None))
    ctx = context(*_SMALL, "online.steps=384")
    for name in ("idm", "policy"):
        run(ctx, name)
    assert "val/accuracy" not in run(ctx, "random-play").results
    results = run(ctx, "online-relabel").results
    assert "val/accuracy" not in results["clone"]
    assert results["env_steps"] == 384


@pytest.mark.parametrize("steps", [256, 255])
@pytest.mark.parametrize("stage", ["random-play", "online-relabel"])
def test_play_that_leaves_no_step_for_ppo_is_a_usage_error(context: MakeContext, stage: str, steps: int) -> None:
    ctx = context(*_SMALL, f"online.steps={steps}")
    with pytest.raises(UsageError, match=r"takes 256 of the 25[56] environment steps: lower relabel\.env_steps or"):
        run(ctx, stage)


class _Restless(VecEnv):
    """Begins an episode in every step."""

    def __init__(self, num_envs: int, seed: int) -> None:
        self._n = num_envs

    def observe(self) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_]]:
        frames = np.zeros((self._n, 64, 64, 3), np.uint8)
        return np.zeros(self._n, np.float32), frames, np.ones(self._n, np.bool_)

    def act(self, actions: object) -> None:
        pass

    def close(self) -> None:
        pass


def test_play_without_three_frames_in_a_row_is_an_error(context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = context(*_SMALL)
    monkeypatch.setitem(ENVIRONMENTS._items, "maze", EnvSpec("maze", 15, make=_Restless))
    with pytest.raises(BrokenEnvironmentError, match="lasts for three frames"):
        run(replace(ctx), "random-play")


def test_ppo_continues_with_the_last_layers_of_the_clone(context: MakeContext) -> None:
    rates = [f"online.{layer}.{key}=0" for layer in ("action_head", "hidden") for key in ("start", "peak")]
    ctx = context(*_SMALL, "online.steps=768", "evaluation.curve_points=1", *rates)
    for name in ("idm", "policy", "random-play"):
        run(ctx, name)
    results = run(ctx, "online-relabel").results
    assert results["env_steps"] == 768  # 256 of random play among them
    curve = [line["step"] for line in read_metrics(ctx.seed_dir.stage("online-relabel").path) if EVALUATED in line]
    assert curve == [256, 768]
    clone, tuned = _weights(ctx, "online-relabel/clone"), _weights(ctx, "online-relabel")
    changed = {name for name, value in clone.items() if not torch.equal(value, tuned[name])}
    assert {name.split(".")[2] for name in changed if name.startswith("agent.policy")} == {"head", "hidden"}


class _Interrupt(Silent):
    """Progress that interrupts the task of that name in its middle."""

    def __init__(self, name: str) -> None:
        self._name, self._hit = name, False

    @contextmanager
    def task(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        self._hit = self._name in name
        yield self

    def update(self, done: int, **metrics: float) -> None:
        if self._hit:
            os.kill(os.getpid(), signal.SIGINT)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "during", ["model of random", "actions of all", "model on random", "clone of what", "between", "stage 3 online"]
)
def test_an_interrupted_run_ends_as_an_unbroken_one(
    context: MakeContext, tmp_path: Path, during: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = context(*_SMALL[:-2], "online.steps=768", "relabel.warm_start=true")
    for name in ("idm", "policy"):
        run(unbroken, name)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("idm", "policy"):
        (copy / name).symlink_to(unbroken.seed_dir.path / name)
    broken = replace(unbroken, seed_dir=replace(unbroken.seed_dir, path=copy))

    def run_both(ctx: Context) -> None:
        run(ctx, "random-play")
        run(ctx, "online-relabel")

    if during == "between":
        monkeypatch.setattr(online_relabel, "ClonedAgent", _interrupt)
    inferred = broken.data_dir / "maze" / "latents"
    shutil.rmtree(inferred)
    with pytest.raises(KeyboardInterrupt), interrupting():  # As the command line; a shell may have SIGINT ignored.
        run_both(replace(broken, progress=_Interrupt(during)))
    monkeypatch.undo()
    run_both(broken)
    shutil.rmtree(inferred)  # Else the other one would find the actions of all frames there.
    run_both(unbroken)
    for folder in ("random-play", "online-relabel/idm", "online-relabel/clone", "online-relabel"):
        one, other = _weights(unbroken, folder), _weights(broken, folder)
        for name, value in one.items():
            assert torch.equal(value, other[name]), (folder, name)


def test_stages_that_the_configuration_names_are_in_the_chain_and_the_table(
    tmp_path: Path, data_dir: Path, tiny: Callable[..., Config]
) -> None:
    few = ("relabel.env_steps=256", "relabel.idm_steps=3", "relabel.steps=3", "online.steps=384")
    config = tiny("extra_stages=relabel,online-relabel", *few)
    made = RunDir.create(tmp_path / "run", config, "paper")
    titles = [row.title for row in run_all(made, ["maze"], [0], Options("cpu", data_dir), Silent()).rows]
    assert "LAPO relabelled and cloned, 64 labels" in titles
    assert "LAPO relabelled online, then PPO, 384 steps" in titles
    done = json.loads((made.path / "maze" / "seed-0" / "online-relabel" / "done.json").read_text())
    assert 0 <= done["results"]["clone"]["val/accuracy"] <= 1
