"""Online decoding: labels of the agent's own transitions, the decoder's timing, PPO's state, rewards."""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lapo_cli.core.compute import Compute
from lapo_cli.core.config import DecoderConfig, OnlineConfig, PPOConfig
from lapo_cli.core.config_loading import load_config
from lapo_cli.core.data.store import open_store
from lapo_cli.core.envs.base import ENVIRONMENTS
from lapo_cli.core.models.frames import normalize
from lapo_cli.core.models.policy import Decoder, LatentPolicy
from lapo_cli.core.models.policy_targets.latent import LatentTarget
from lapo_cli.core.run_dir import SeedDir
from lapo_cli.core.stages import online
from lapo_cli.core.training import decoding
from lapo_cli.core.training.agents import DirectAgent, LatentAgent
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.latent_labels import latent_labels, played_pairs
from lapo_cli.core.training.networks import load_idm, load_policy
from lapo_cli.core.training.ppo import PPO, RewardScaler, Rollout
from lapo_cli.core.training.probe import majority_accuracy, probe_accuracy, split_by_episode
from tests.core.tiny_config import TINY, run

_CPU = torch.device("cpu")
_COMPUTE = Compute(_CPU, bf16=False)


def test_rewards_are_divided_by_the_running_deviation_of_the_discounted_return() -> None:
    rng = np.random.default_rng(0)
    scaler = RewardScaler(3, gamma=0.9)
    running, seen = np.zeros(3), []
    for _ in range(40):
        rewards, ended = rng.normal(0, 5, 3).astype(np.float32), rng.random(3) < 0.2
        running = running * 0.9 + rewards
        seen.append(running.copy())
        running[ended] = 0
        expected = (rewards / np.std(seen)).clip(-10, 10)
        scaled = scaler(rewards, ended)
    np.testing.assert_allclose(scaled, expected, rtol=1e-3)
    clipped = scaler(np.full(3, 1e6, np.float32), np.zeros(3, bool))
    assert (clipped <= 10).all()


def test_the_reward_scaler_resumes_from_its_state() -> None:
    one, other = RewardScaler(2, 0.9), RewardScaler(2, 0.9)
    rewards, ended = np.array([1.0, -2.0], np.float32), np.array([False, True])
    for _ in range(3):
        one(rewards, ended)
    other.load_state_dict(one.state_dict())
    assert one(rewards, ended).tolist() == other(rewards, ended).tolist()


def _ppo(kind: str) -> PPO:
    torch.manual_seed(0)
    config = OnlineConfig(steps=10_000, ppo=PPOConfig(num_envs=4, num_steps=12, minibatches=2, env_groups=2))
    if kind == "latent":
        agent: Any = LatentAgent(LatentPolicy(1, 16, LatentTarget(8)), 15, with_decoder=True, compute=_COMPUTE)
        groups = agent.parameter_groups(config)
    else:
        agent = DirectAgent(1, 16, 15, _COMPUTE)
        groups = agent.parameter_groups(config.scratch.at)
    return PPO(agent, groups, ENVIRONMENTS.get("bigfish"), config, seed=3, device=_CPU)


def _same(one: Rollout, other: Rollout) -> None:
    for name in ("actions", "logprobs", "values", "rewards", "first"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for a, b in zip(one.encoded, other.encoded, strict=True):
        assert torch.equal(a, b)
    assert one.frames is not None
    assert other.frames is not None
    assert np.array_equal(one.frames, other.frames)
    assert (one.returns, one.lengths) == (other.returns, other.lengths)


@pytest.mark.parametrize("kind", ["scratch", "latent"])
def test_ppo_resumes_from_its_state_as_if_it_had_not_stopped(kind: str) -> None:
    ppo, other = _ppo(kind), _ppo(kind)
    for _ in range(6):
        ppo.update(ppo.collect(keep_frames=True))
    file = io.BytesIO()
    torch.save(ppo.state_dict(), file)
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    rng = torch.get_rng_state()
    for _ in range(3):
        torch.set_rng_state(rng)
        one = ppo.collect(keep_frames=True)
        ppo.update(one)
        torch.set_rng_state(rng)
        two = other.collect(keep_frames=True)
        other.update(two)
        _same(one, two)
        rng = torch.get_rng_state()
    for name, value in ppo.agent.state_dict().items():
        assert torch.equal(value, other.agent.state_dict()[name]), name
    ppo.close()
    other.close()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_agent_learns_what_the_plain_one_learns() -> None:
    ends = []
    for compiled in (False, True):
        torch.manual_seed(0)
        agent = DirectAgent(1, 16, 15, _COMPUTE)
        ppo = PPOConfig(num_envs=4, num_steps=12, minibatches=2, env_groups=1, compile=compiled)
        config = OnlineConfig(steps=10_000, ppo=ppo)
        learner = PPO(
            agent, agent.parameter_groups(config.scratch.at), ENVIRONMENTS.get("bigfish"), config, seed=3, device=_CPU
        )
        first = learner.collect(keep_frames=False)
        learner.update(first)
        learner.close()
        ends.append((first, agent.state_dict()))
    (one, plain), (two, compiled_end) = ends
    assert torch.equal(one.actions, two.actions)
    assert list(plain) == list(compiled_end)
    for name, value in plain.items():
        torch.testing.assert_close(value, compiled_end[name], atol=1e-3, rtol=1e-2, msg=name)


def test_successive_rollouts_join_without_a_gap() -> None:
    ppo = _ppo("scratch")
    one, two = ppo.collect(keep_frames=True), ppo.collect(keep_frames=True)
    assert one.frames is not None
    assert two.frames is not None
    assert np.array_equal(one.frames[-1], two.frames[0])
    assert torch.equal(one.first[-1], two.first[0])
    ppo.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Context:
    """Stages 1 and 2 done."""
    seed_dir = SeedDir(tmp_path_factory.mktemp("trained") / "maze" / "seed-0", "maze", 0)
    ctx = Context(seed_dir, load_config("paper", overrides=TINY), _COMPUTE, data_dir)
    run(ctx, "idm")
    run(ctx, "policy")
    return ctx


def _labeller(ctx: Context) -> tuple[Any, LatentAgent]:
    agent = LatentAgent(load_policy(ctx), 15, with_decoder=True, compute=ctx.compute)
    return online._OnlineDecoder(ctx, agent), agent


def _rollout(first: torch.Tensor, seed: int = 0) -> Rollout:
    generator = torch.Generator().manual_seed(seed)
    steps, envs = first.shape[0] - 1, first.shape[1]
    frames = torch.randint(0, 256, (steps + 1, envs, 64, 64, 3), dtype=torch.uint8, generator=generator)
    actions = torch.randint(0, 15, (steps, envs), generator=generator)
    empty = torch.zeros(steps, envs)
    return Rollout((), actions, empty, torch.zeros(steps + 1, envs), empty, first, frames.numpy(), [], [])


def test_online_labels_match_plain_indexing_and_cross_no_episode(trained: Context) -> None:
    first = torch.rand(11, 5, generator=torch.Generator().manual_seed(1)) < 0.25
    rollout = _rollout(first)
    assert rollout.frames is not None
    idm = load_idm(trained)
    latents, actions = played_pairs(trained, idm, rollout.frames, first.numpy(), rollout.actions)
    frames = torch.from_numpy(np.asarray(rollout.frames))
    expected, taken = [], []
    for t in range(1, 10):
        for n in range(5):
            if first[t, n] or first[t + 1, n]:
                continue  # o_{t-1} or o_{t+1} belongs to another episode than o_t
            window = torch.stack([frames[t - 1, n], frames[t, n], frames[t + 1, n]])[None]
            expected.append(idm.latent_action(normalize(window, 16))[0])
            taken.append(int(rollout.actions[t, n]))  # what was done at o_t
    assert actions.tolist() == taken
    assert latents.dtype == torch.float16
    torch.testing.assert_close(latents.float(), torch.stack(expected), atol=2e-3, rtol=2e-3)


def test_the_decoder_is_trained_at_the_scheduled_updates(trained: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    labeller, _ = _labeller(trained)
    sizes: list[int] = []

    def fit(decoder: Decoder, latents: torch.Tensor, *_: Any) -> float:
        sizes.append(len(latents))
        return 0.0

    monkeypatch.setattr(online.decoding, "fit", fit)
    learnt = []
    rollout = _rollout(torch.zeros(5, 2, dtype=torch.bool))  # 3 windows of 2 environments
    # 4,096 environment steps an update: after 10k and until 50k at each, then each 20th, until 400k
    for update in range(1, 120):
        before = len(sizes)
        labeller.learn(
            rollout if labeller.wants((update - 1) * 4096) else _without_frames(rollout), update, update * 4096
        )
        if len(sizes) > before:
            learnt.append(update)
    assert trained.config.online.decoder_from == 100
    assert learnt == [*range(1, 13), 20, 40, 60, 80]
    assert sizes[-1] == 80 * 6  # all pairs so far
    assert labeller.state_dict() == {"latents": [], "actions": []}  # once the decoder is final


def _without_frames(rollout: Rollout) -> Rollout:
    return Rollout((), rollout.actions, rollout.logprobs, rollout.values, rollout.rewards, rollout.first, None, [], [])


def test_the_decoder_learns_and_is_frozen_again() -> None:
    torch.manual_seed(0)
    decoder = Decoder(8, 15)
    actions = torch.randint(0, 15, (600,))
    latents = torch.nn.functional.one_hot(actions % 8, 8).half() * 3
    first = decoding.fit(decoder, latents, actions % 8, DecoderConfig(batch_size=64), steps=1)
    last = decoding.fit(decoder, latents, actions % 8, DecoderConfig(batch_size=64), steps=300)
    assert last < first / 2
    assert not any(parameter.requires_grad for parameter in decoder.parameters())
    with torch.no_grad():
        assert (decoder(latents.float()).argmax(1) == actions % 8).float().mean() > 0.99


def test_stage_2_labels_are_the_latent_actions_of_each_window(trained: Context) -> None:
    video = open_store(trained.data_dir, "maze", "train").video()
    windows = video.windows(2048)
    idm = load_idm(trained)
    labels = latent_labels(trained, idm, "test of labels", video, windows)
    assert labels.shape == (len(windows), trained.config.model.quantizer.la_dim)
    picked = np.random.default_rng(0).choice(len(windows), 64, replace=False)
    for row in (0, len(windows) - 1, *picked):
        t = windows[row]
        window = torch.from_numpy(np.stack([video.frames[t - 1], video.frames[t], video.frames[t + 1]]))[None]
        expected = idm.latent_action(normalize(window, 16))[0]
        torch.testing.assert_close(torch.from_numpy(labels[row].copy()).float(), expected, atol=2e-3, rtol=2e-3)


def test_the_probe_reads_what_is_there_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    actions = rng.integers(0, 15, 6000)
    telling = torch.nn.functional.one_hot(torch.from_numpy(actions), 15).float() * 1e-4
    noise = torch.from_numpy(rng.normal(size=(6000, 15)).astype(np.float32))
    assert probe_accuracy(telling, actions, 15, split=3000, epochs=8, seed=0) > 0.95
    assert probe_accuracy(noise, actions, 15, split=3000, epochs=3, seed=0) < 0.15
    before = torch.get_rng_state()
    probe_accuracy(noise[:200], actions[:200], 15, split=100, epochs=1, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert majority_accuracy(np.array([1, 1, 2, 1, 2, 2]), split=3) == pytest.approx(1 / 3)


@given(lengths=st.lists(st.integers(3, 40), min_size=1, max_size=12), most=st.integers(1, 100), seed=st.integers(0, 9))
def test_the_probe_is_tested_on_other_episodes_than_it_is_trained_on(lengths: list[int], most: int, seed: int) -> None:
    starts = np.zeros(sum(lengths), bool)
    starts[np.cumsum([0, *lengths[:-1]])] = True
    windows = np.flatnonzero(~(starts[1:-1] | starts[2:])) + 1
    one, other = split_by_episode(windows, starts, most=most, seed=seed)
    assert len(one) <= most
    assert len(other) <= most
    assert np.isin(np.concatenate([one, other]), windows).all()
    frames = [set((half[:, None] + [-1, 0, 1]).flatten().tolist()) for half in (one, other)]
    assert frames[0].isdisjoint(frames[1])
    if len(lengths) > 1:
        episode = np.cumsum(starts)
        assert set(episode[one].tolist()).isdisjoint(episode[other].tolist())
        assert len(one) > 0
        assert len(other) > 0
