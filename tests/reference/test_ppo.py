"""PPO on cached encodings against PPO that runs the whole network for every minibatch."""

import copy

import pytest
import torch

from lapo_cli.core.compute import Compute
from lapo_cli.core.config import OnlineConfig, PPOConfig, Ramp
from lapo_cli.core.envs.base import ENVIRONMENTS
from lapo_cli.core.models.policy import LatentPolicy
from lapo_cli.core.models.policy_targets.latent import LatentTarget
from lapo_cli.core.training.agents import Agent, DirectAgent, LatentAgent, ParameterGroup
from lapo_cli.core.training.gae import gae
from lapo_cli.core.training.ppo import PPO
from tests.reference.plain_ppo import PlainLatentAgent, PlainRollout, plain_gae, plain_ppo_update

_CPU = Compute(torch.device("cpu"), bf16=False)
_CONFIG = OnlineConfig(
    steps=100_000,
    ppo=PPOConfig(num_envs=4, num_steps=8, minibatches=4, epochs=3),
    action_head=Ramp(start=0, peak=0, lr=3e-3),
    value_head=Ramp(start=0, peak=0, lr=2e-3),
    hidden=Ramp(start=0, peak=0, lr=1e-3),
)


@pytest.mark.parametrize("chance", [0.0, 0.3, 1.0])
def test_gae_is_the_discounted_sum_of_errors_within_an_episode(chance: float) -> None:
    torch.manual_seed(1)
    rewards, values, first = torch.randn(12, 3), torch.randn(13, 3), torch.rand(13, 3) < chance
    advantages, returns = gae(rewards, values, first, gamma=0.9, lam=0.8)
    for n in range(3):
        a, r = plain_gae(rewards[:, n].tolist(), values[:, n].tolist(), first[:, n].tolist(), 0.9, 0.8)
        torch.testing.assert_close(advantages[:, n], torch.tensor(a))
        torch.testing.assert_close(returns[:, n], torch.tensor(r))


def test_nothing_after_the_end_of_an_episode_reaches_what_was_before() -> None:
    torch.manual_seed(1)
    rewards, values = torch.randn(6, 1), torch.randn(7, 1)
    first = torch.tensor([0, 0, 0, 1, 0, 0, 0], dtype=torch.bool)[:, None]  # observation 3 begins an episode
    before, _ = gae(rewards, values, first, gamma=0.9, lam=0.8)
    rewards[3:], values[3:] = 100.0, -50.0
    after, _ = gae(rewards, values, first, gamma=0.9, lam=0.8)
    assert torch.equal(before[:3], after[:3])
    assert not torch.isclose(before[3:], after[3:]).any()


def _latent_policy() -> LatentPolicy:
    return LatentPolicy(1, 32, LatentTarget(16))


def _agents() -> tuple[LatentAgent, PlainLatentAgent]:
    torch.manual_seed(3)
    agent = LatentAgent(_latent_policy(), 15, with_decoder=True, compute=_CPU)
    with torch.no_grad():  # not at zero, where its input gets no gradient
        agent.action.weight.normal_(0, 0.05)
    plain = PlainLatentAgent(16, 1, 32)
    plain.load_state_dict(agent.state_dict())
    return agent, plain


def test_the_two_branches_give_the_plain_logits_and_values() -> None:
    agent, plain = _agents()
    frames = torch.randint(0, 256, (5, 64, 64, 3), dtype=torch.uint8)
    for fast, slow in zip(agent(*agent.encode(frames)), plain(frames), strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(agent.act(frames), plain(frames)[0], atol=1e-5, rtol=1e-4)


def test_a_fresh_rl_branch_is_uniform_and_shares_the_latent_policys_linear_layer() -> None:
    policy = _latent_policy()
    frames = torch.randint(0, 256, (5, 64, 64, 3), dtype=torch.uint8)
    alone = LatentAgent(policy, 15, with_decoder=False, compute=_CPU)
    assert torch.equal(alone.act(frames), torch.zeros(5, 15))
    assert torch.equal(alone.hidden.weight, policy.hidden.weight)
    assert alone.hidden.weight.data_ptr() != policy.hidden.weight.data_ptr()
    both = LatentAgent(policy, 15, with_decoder=True, compute=_CPU)
    assert both.decoder is not None
    expected = both.decoder(policy(alone_input(frames))) / 2
    torch.testing.assert_close(both.act(frames), expected, atol=1e-5, rtol=1e-4)


def alone_input(frames: torch.Tensor) -> torch.Tensor:
    from tests.reference.plain_models import plain_normalize

    return plain_normalize(frames, 32)


def test_an_update_on_cached_encodings_ends_at_the_weights_of_the_plain_one() -> None:
    agent, plain = _agents()
    untouched = copy.deepcopy(agent.latent_policy.state_dict())
    plain.latent_policy.requires_grad_(False)
    plain.decoder.requires_grad_(False)
    ppo = PPO(
        agent, agent.parameter_groups(_CONFIG), ENVIRONMENTS.get("bigfish"), _CONFIG, seed=5, device=torch.device("cpu")
    )
    optimizer = torch.optim.Adam(
        [
            {"params": plain.action.parameters(), "lr": 3e-3},
            {"params": plain.value.parameters(), "lr": 2e-3},
            {"params": plain.hidden.parameters(), "lr": 1e-3},
        ]
    )
    try:
        for _ in range(2):
            rollout = ppo.collect(keep_frames=True)
            for settings, peak in zip(optimizer.param_groups, (3e-3, 2e-3, 1e-3), strict=True):
                settings["lr"] = peak * (1 - (ppo.env_steps - 32) / 100_000)
            assert rollout.frames is not None
            state = torch.get_rng_state()
            orders = [torch.randperm(32) for _ in range(3)]
            torch.set_rng_state(state)
            ppo.update(rollout)
            plain_rollout = PlainRollout(
                torch.from_numpy(rollout.frames),
                rollout.actions,
                rollout.logprobs,
                rollout.values,
                rollout.rewards,
                rollout.first,
            )
            plain_ppo_update(plain, optimizer, plain_rollout, _CONFIG.ppo, orders)
    finally:
        ppo.close()
    learnt = plain.state_dict()
    for name, value in agent.state_dict().items():
        torch.testing.assert_close(value, learnt[name], atol=2e-5, rtol=1e-3, msg=name)
    assert not torch.equal(agent.hidden.weight, agent.latent_policy.hidden.weight)
    for name, value in agent.latent_policy.state_dict().items():
        assert torch.equal(value, untouched[name]), name


@pytest.mark.parametrize("kind", ["latent", "scratch"])
def test_what_was_stored_while_acting_is_what_the_network_computes_from_the_frames(kind: str) -> None:
    agent: Agent = _agents()[0] if kind == "latent" else DirectAgent(1, 32, 15, _CPU)
    groups = [ParameterGroup(list(agent.parameters()), _CONFIG.scratch.at)]
    ppo = PPO(agent, groups, ENVIRONMENTS.get("bigfish"), _CONFIG, seed=5, device=torch.device("cpu"))
    rollout = ppo.collect(keep_frames=True)
    ppo.close()
    assert rollout.frames is not None
    for t in range(8):
        logits, values = agent(*agent.encode(torch.from_numpy(rollout.frames[t])))
        chances = logits.log_softmax(1).gather(1, rollout.actions[t][:, None])[:, 0]
        torch.testing.assert_close(rollout.logprobs[t], chances, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(rollout.values[t], values, atol=1e-5, rtol=1e-4)
        for stored, now in zip(rollout.encoded, agent.encode(torch.from_numpy(rollout.frames[t])), strict=True):
            torch.testing.assert_close(stored[t], now, atol=1e-5, rtol=1e-4)
