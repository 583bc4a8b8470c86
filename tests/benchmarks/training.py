"""Stages 1 to 3, paper-size models, batch 128: what lapo does against the plain formulation.

Plain: float32, contiguous layout, no autocast, the latent action repeated over the image, frames made float on the
host, AdamW with its defaults, nothing cached. Both sides share the vectorized quantizer; the one in loops is a
reference for its numbers, not for its speed.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from lapo_cli.core.compute import Compute, resolve
from lapo_cli.core.config import Config
from lapo_cli.core.data.batches import BatchSampler, FrameLoader
from lapo_cli.core.data.replay_log import bundled_logs
from lapo_cli.core.data.sources.replay import import_replay
from lapo_cli.core.data.store import Video, open_store
from lapo_cli.core.envs.base import ENVIRONMENTS
from lapo_cli.core.envs.procgen import ProcgenVecEnv
from lapo_cli.core.models.frames import normalize
from lapo_cli.core.models.policy import LatentPolicy, Policy
from lapo_cli.core.models.policy_targets.latent import LatentTarget
from lapo_cli.core.models.world_model import WorldModel
from lapo_cli.core.training.agents import LatentAgent
from lapo_cli.core.training.joint_loss import joint_loss
from lapo_cli.core.training.networks import build_idm
from lapo_cli.core.training.ppo import PPO
from tests.benchmarks.timing import Line, interleaved, medians
from tests.reference.plain_models import PlainEncoder, PlainWorldModel, plain_normalize, plain_stage1_loss
from tests.reference.plain_ppo import PlainLatentAgent, PlainRollout, plain_ppo_update

_CONFIG = Config()
_MODEL = _CONFIG.model
_BATCH = 128
_FOREVER = 10**6
_LABEL_CHUNK = 512


def _video(folder: str) -> Video:
    """8,192 real frames."""
    game = "fruitbot"
    import_replay(bundled_logs(game)["train"], Path(folder), "train", max_frames=8192)
    return open_store(Path(folder), game, "train").video()


def _plain_batches(video: Video, sampler: BatchSampler, offsets: tuple[int, ...]) -> Iterator[Tensor]:
    """(B, T, 3, 64, 64) float32, made on the host for every batch."""
    for step in range(_FOREVER):
        rows = sampler.indices(step)[:, None] + np.array(offsets)
        yield plain_normalize(torch.from_numpy(video.frames[rows]))


def stage1(rounds: int) -> list[Line]:
    """One training step of the IDM and the world model."""
    compute = resolve("cpu")
    with TemporaryDirectory() as folder:
        video = _video(folder)
        sampler = BatchSampler(video.windows(), _BATCH, seed=0)
        idm, world_model = build_idm(_MODEL), WorldModel(_MODEL.world_model_base, 64, _MODEL.quantizer.la_dim)
        plain_idm = PlainEncoder(9, _MODEL.idm_scale, 64, _MODEL.quantizer.la_dim)
        plain_world_model = PlainWorldModel(_MODEL.world_model_base, _MODEL.quantizer.la_dim)
        quantizer = build_idm(_MODEL).quantizer
        compute.place(idm)
        compute.place(world_model)
        parameters = [*idm.parameters(), *world_model.parameters()]
        plain_parameters = [*plain_idm.parameters(), *plain_world_model.parameters()]
        optimizer = torch.optim.AdamW(parameters, 3e-4, fused=True)
        plain_optimizer = torch.optim.AdamW(plain_parameters, 3e-4)
        batches = FrameLoader(video, compute.device).batches(sampler, 0, _FOREVER)
        plain_batches = _plain_batches(video, sampler, (-1, 0, 1))

        def fast() -> None:
            loss, _ = joint_loss(idm, world_model, normalize(next(batches), 64), compute, 0.0)
            _update(loss, optimizer, parameters)

        def plain() -> None:
            loss = plain_stage1_loss(plain_idm, quantizer, plain_world_model, next(plain_batches))
            _update(loss, plain_optimizer, plain_parameters)

        times = interleaved(fast, plain, rounds)
    f, p, ratio = medians(times)
    return [Line("stage 1, training step", f"{p:.2f} s", f"{f:.2f} s", f"{ratio:.1f} x", "4 x")]


def _update(loss: Tensor, optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter]) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 2.0)
    optimizer.step()


def stage2(rounds: int) -> list[Line]:
    """Samples a second over the whole stage.

    Plain asks the IDM about every batch. Fast asks it once about every window of the data set, which the 60,000
    batches of the paper visit about three times: a sample bears 2.6 M / (60,000 x 128) of a window's labelling.
    """
    compute = resolve("cpu")
    share = _CONFIG.data.max_frames / (_CONFIG.stage2.steps * _CONFIG.stage2.batch_size)
    with TemporaryDirectory() as folder:
        video = _video(folder)
        windows = video.windows()
        sampler = BatchSampler(windows, _BATCH, seed=0)
        idm = build_idm(_MODEL).requires_grad_(False).eval()
        policy = Policy(_MODEL.policy_scale, 64, _MODEL.quantizer.la_dim)
        plain_idm = PlainEncoder(9, _MODEL.idm_scale, 64, _MODEL.quantizer.la_dim)
        plain_policy = PlainEncoder(3, _MODEL.policy_scale, 64, _MODEL.quantizer.la_dim)
        compute.place(idm)
        compute.place(policy)
        optimizer = torch.optim.AdamW(policy.parameters(), 2e-4, fused=True)
        plain_optimizer = torch.optim.AdamW(plain_policy.parameters(), 2e-4)
        loader = FrameLoader(video, compute.device)
        batches = loader.batches(sampler, 0, _FOREVER, (0,))
        plain_batches = _plain_batches(video, sampler, (-1, 0, 1))
        labels = np.zeros((len(windows), _MODEL.quantizer.la_dim), np.float16)

        @torch.no_grad()
        def label() -> None:
            with compute.autocast():
                z = idm.latent_action(normalize(loader.gather(windows[:_LABEL_CHUNK]), 64))
            labels[:_LABEL_CHUNK] = z.to(torch.float16).numpy()

        def fast() -> None:
            frames = next(batches)
            z = torch.from_numpy(labels[np.searchsorted(windows, sampler.indices(0))]).float()
            with compute.autocast():
                predicted = policy(normalize(frames[:, 0], 64))
            loss = (predicted.float() - z).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        def plain() -> None:
            frames = next(plain_batches)
            with torch.no_grad():
                z = plain_idm(frames.flatten(1, 2))
            loss = (plain_policy(frames[:, 1]) - z).square().mean()
            plain_optimizer.zero_grad()
            loss.backward()
            plain_optimizer.step()

        steps = interleaved(fast, plain, rounds)
        labelling, _, _ = medians(interleaved(label, lambda: None, rounds))
    per_sample = [(f / _BATCH + share * labelling / _LABEL_CHUNK, p / _BATCH) for f, p in steps]
    f, p, ratio = medians(per_sample)
    return [Line("stage 2, whole stage", f"{1 / p:.0f} samples/s", f"{1 / f:.0f} samples/s", f"{ratio:.1f} x", "3 x")]


_PLAIN_STEPS = 4


def stage3(rounds: int) -> list[Line]:
    """Environment steps a second of online training, 64 environments.

    Fast: rollouts of 64 steps, 8 minibatches, 3 epochs. Plain: the convolutions run, with gradients, for every action
    and for every minibatch of 3 epochs; its rollouts have 4 steps and their epochs one minibatch of all 256, which
    makes the same work for each environment step in a sixteenth of the time. Both label their transitions with the
    IDM for the tenth of the steps (400 k of 4 M) that the decoder learns from; fitting the decoder costs both the same
    and is left out.
    """
    compute = resolve("cpu")
    config = _CONFIG.online
    decoding_share = config.decoder_until / config.steps
    la_dim = _MODEL.quantizer.la_dim
    policy = LatentPolicy(_MODEL.policy_scale, 64, LatentTarget(la_dim))
    agent = LatentAgent(policy, 15, with_decoder=True, compute=compute)
    compute.place(agent)
    idm = build_idm(_MODEL).requires_grad_(False).eval()
    compute.place(idm)
    ppo = PPO(agent, agent.parameter_groups(config), ENVIRONMENTS.get("bigfish"), config, seed=0, device=compute.device)
    plain = _PlainOnline()
    windows = torch.randint(0, 256, (_LABEL_CHUNK, 3, 64, 64, 3), dtype=torch.uint8)

    def fast() -> None:
        ppo.update(ppo.collect(keep_frames=True))

    @torch.no_grad()
    def label() -> None:
        with compute.autocast():
            idm.latent_action(normalize(windows, 64)).to(torch.float16)

    @torch.no_grad()
    def plain_label() -> None:
        plain.idm(plain_normalize(windows[:64]).flatten(1, 2))

    try:
        rounds_of = interleaved(fast, plain.iterate, max(2, rounds // 2))
        labelling, plain_labelling, _ = medians(interleaved(label, plain_label, rounds))
    finally:
        ppo.close()
        plain.env.close()
    per_rollout = config.ppo.num_envs * config.ppo.num_steps
    times = [
        (
            f / per_rollout + decoding_share * labelling / _LABEL_CHUNK,
            p / (64 * _PLAIN_STEPS) + decoding_share * plain_labelling / 64,
        )
        for f, p in rounds_of
    ]
    f, p, ratio = medians(times)
    return [Line("stage 3 online", f"{1 / p:.0f} steps/s", f"{1 / f:.0f} steps/s", f"{ratio:.1f} x", "10 x")]


class _PlainOnline:
    """Stage 3 as the research code does it, without the labelling."""

    def __init__(self) -> None:
        self.agent = PlainLatentAgent(_MODEL.quantizer.la_dim, _MODEL.policy_scale, 64)
        self.idm = PlainEncoder(9, _MODEL.idm_scale, 64, _MODEL.quantizer.la_dim)
        heads = [self.agent.action, self.agent.value, self.agent.hidden]
        self.optimizer = torch.optim.Adam([{"params": head.parameters(), "lr": 1e-3} for head in heads])
        self.config = _CONFIG.online.ppo.model_copy(update={"minibatches": 1, "num_steps": _PLAIN_STEPS})
        self.env = ProcgenVecEnv("bigfish", 64, 0)

    def iterate(self) -> None:
        frames, actions, logprobs, values, rewards, first = [], [], [], [], [], []
        for t in range(_PLAIN_STEPS + 1):
            reward, obs, began = self.env.observe()
            frames.append(torch.from_numpy(obs.copy()))
            first.append(torch.from_numpy(began.copy()))
            if t > 0:
                rewards.append(torch.from_numpy(reward.copy()))
            with torch.no_grad():
                logits, value = self.agent(frames[-1])
            values.append(value)
            if t == _PLAIN_STEPS:
                break
            policy = torch.distributions.Categorical(logits=logits)
            actions.append(policy.sample())
            logprobs.append(policy.log_prob(actions[-1]))
            self.env.act(actions[-1].numpy())
        rollout = PlainRollout(*map(torch.stack, (frames, actions, logprobs, values, rewards, first)))
        orders = [torch.randperm(64 * _PLAIN_STEPS) for _ in range(self.config.epochs)]
        plain_ppo_update(self.agent, self.optimizer, rollout, self.config, orders)


def describe(compute: Compute) -> str:
    """What the numbers were measured on."""
    precision = "bfloat16 autocast" if compute.bf16 else "float32: this processor is not fast at bfloat16"
    return f"{compute.device}, {torch.get_num_threads()} threads, torch {torch.__version__}, {precision}"
