"""Each training of a configuration on one device: speed, use of the device, time to finish, agreement with the CPU.

For any CUDA machine, in a few minutes; a CPU gives the same document, without what only a GPU has. Frames are those of
a bundled log, networks and batches those of the configuration. What a stage does beside its updates (probe, evaluation,
decoder) is not in the time to finish.
"""

import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

import lapo_cli
from lapo_cli.core.compute import Compute, resolve
from lapo_cli.core.config import Config
from lapo_cli.core.data.batches import BatchSampler, FrameLoader
from lapo_cli.core.data.replay_log import bundled_logs
from lapo_cli.core.data.sources.replay import import_replay
from lapo_cli.core.data.store import Video, open_store
from lapo_cli.core.envs.base import ENVIRONMENTS
from lapo_cli.core.models.frames import normalize
from lapo_cli.core.training.agents import LatentAgent
from lapo_cli.core.training.joint_loss import joint_loss
from lapo_cli.core.training.networks import build_idm, build_latent_policy, build_world_model
from lapo_cli.core.training.ppo import PPO
from tests.reference.plain_models import PlainEncoder, PlainWorldModel, plain_normalize, plain_stage1_loss

_FOREVER = 10**7
_GAME = "fruitbot"


def measure(device: str, config: Config, *, seconds: float, frames: int = 8192) -> dict[str, Any]:
    """The whole document, JSON-like.

    Args:
        seconds: of each timing, after three updates that do not count; a timing has at least one update.
        frames: of the store that is trained on.
    """
    compute = resolve(device, config.precision)
    with TemporaryDirectory() as folder:
        import_replay(bundled_logs(_GAME)["train"], Path(folder), "train", max_frames=frames)
        video = open_store(Path(folder), _GAME, "train").video()
        stages = {
            "stage 1": _stage1(compute, config, video, seconds),
            "stage 2": _stage2(compute, config, video, seconds),
            "stage 3 online": _online(compute, config, seconds),
        }
    return {
        "lapo": lapo_cli.__version__,
        "torch": str(torch.__version__),
        "device": compute.name,
        "precision": "bf16" if compute.bf16 else "fp32",
        "seconds_per_timing": seconds,
        "stages": stages,
    }


def _stage1(compute: Compute, config: Config, video: Video, seconds: float) -> dict[str, Any]:
    model, batch = config.model, config.stage1.batch_size
    sampler = BatchSampler(video.windows(), batch, seed=0)
    torch.manual_seed(0)
    idm, world_model = build_idm(model), build_world_model(model)
    on_cpu = deepcopy(idm), deepcopy(world_model)
    compute.place(idm)
    compute.place(world_model)
    loader = FrameLoader(video, compute.device)
    indices = sampler.indices(0)

    def loss_of(networks: Any, on: Compute, windows: Tensor) -> Tensor:
        its_idm, its_world_model = networks
        frames = normalize(windows.to(on.device), model.frame_size)
        return joint_loss(its_idm, its_world_model, frames, on, config.stage1.error_focus)[0]

    cpu = Compute(torch.device("cpu"), bf16=False)
    windows = FrameLoader(video, "cpu").gather(indices)
    agreement = _difference(loss_of(deepcopy((idm, world_model)), compute, windows), loss_of(on_cpu, cpu, windows))
    parameters = [*idm.parameters(), *world_model.parameters()]
    optimizer = torch.optim.AdamW(parameters, config.stage1.lr, fused=True)
    batches = loader.batches(sampler, 0, _FOREVER)

    def fast() -> None:
        _update(loss_of((idm, world_model), compute, next(batches)), optimizer)

    plain_idm = PlainEncoder(9, model.idm_scale, 64, model.quantizer.la_dim).to(compute.device)
    plain_world_model = PlainWorldModel(model.world_model_base, model.quantizer.la_dim).to(compute.device)
    quantizer = build_idm(model).quantizer.to(compute.device)
    plain_optimizer = torch.optim.AdamW([*plain_idm.parameters(), *plain_world_model.parameters()])

    def plain() -> None:
        on_device = plain_normalize(windows).to(compute.device)
        _update(plain_stage1_loss(plain_idm, quantizer, plain_world_model, on_device), plain_optimizer)

    return _timed(compute, fast, seconds, config.stage1.steps, plain) | {"difference_from_cpu": agreement}


def _stage2(compute: Compute, config: Config, video: Video, seconds: float) -> dict[str, Any]:
    model, batch = config.model, config.stage2.batch_size
    torch.manual_seed(0)
    policy = build_latent_policy(model, config.stage2.target, model.quantizer.build())
    on_cpu = deepcopy(policy)
    compute.place(policy)
    z = torch.randn(batch, model.quantizer.la_dim)
    sampler = BatchSampler(video.windows(), batch, seed=0)

    def loss_of(network: Any, on: Compute, frames: Tensor) -> Tensor:
        with on.autocast():
            predicted = network(normalize(frames.to(on.device)[:, 0], network.size))
        loss: Tensor = network.target.loss(predicted.float(), z.to(on.device))
        return loss

    frames = FrameLoader(video, "cpu").gather(sampler.indices(0), (0,))
    agreement = _difference(
        loss_of(policy, compute, frames), loss_of(on_cpu, Compute(torch.device("cpu"), bf16=False), frames)
    )
    optimizer = torch.optim.AdamW(policy.parameters(), config.stage2.lr, fused=True)
    batches = FrameLoader(video, compute.device).batches(sampler, 0, _FOREVER, (0,))

    def fast() -> None:
        _update(loss_of(policy, compute, next(batches)), optimizer)

    plain_policy = PlainEncoder(3, model.policy_scale, 64, model.quantizer.la_dim).to(compute.device)
    plain_optimizer = torch.optim.AdamW(plain_policy.parameters())

    def plain() -> None:
        predicted = plain_policy(plain_normalize(frames).to(compute.device)[:, 0])
        _update((predicted - z.to(compute.device)).square().mean(), plain_optimizer)

    return _timed(compute, fast, seconds, config.stage2.steps, plain) | {"difference_from_cpu": agreement}


def _online(compute: Compute, config: Config, seconds: float) -> dict[str, Any]:
    model, online = config.model, config.online
    torch.manual_seed(0)
    env = ENVIRONMENTS.get(_GAME)
    policy = build_latent_policy(model, config.stage2.target, model.quantizer.build())
    agent = LatentAgent(policy, env.require_actions(), with_decoder=True, compute=compute)
    on_cpu = deepcopy(policy)
    compute.place(agent)
    frames = torch.randint(0, 256, (online.ppo.num_envs, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad(), compute.autocast():
        there = policy(normalize(frames.to(compute.device), policy.size))
    with torch.no_grad():
        agreement = _difference(there, on_cpu(normalize(frames, policy.size)))
    ppo = PPO(agent, agent.parameter_groups(online), env, online, seed=0, device=compute.device)
    rollout_steps = online.ppo.num_envs * online.ppo.num_steps
    try:
        measured = _timed(
            compute, lambda: ppo.update(ppo.collect(keep_frames=True)), seconds, -(-online.steps // rollout_steps)
        )
    finally:
        ppo.close()
    return measured | {
        "env_steps_per_second": measured["steps_per_second"] * rollout_steps,
        "difference_from_cpu": agreement,
    }


def _update(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _difference(here: Tensor, there: Tensor) -> float:
    """Largest difference, relative to the largest absolute value on the CPU."""
    reference = there.detach().float()
    difference = (here.detach().float().cpu() - reference).abs().max()
    return float(difference / reference.abs().max().clamp_min(1e-12))


def _timed(
    compute: Compute,
    action: Callable[[], object],
    seconds: float,
    total: int,
    plain: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Steps a second, time to finish ``total`` of them, what the device was used for, and the ratio to ``plain``."""
    if compute.is_cuda:
        torch.cuda.reset_peak_memory_stats(compute.device)
    with _Utilization(compute) as utilization:
        rate = _rate(compute, action, seconds)
    peak = torch.cuda.max_memory_allocated(compute.device) if compute.is_cuda else None
    return {
        "steps_per_second": rate,
        "hours_to_finish": total / rate / 3600,
        "gpu_utilization_percent": utilization.mean,
        "peak_gpu_memory_bytes": peak,
        "ratio_to_plain": None if plain is None else rate / _rate(compute, plain, seconds),
    }


def _rate(compute: Compute, action: Callable[[], object], seconds: float) -> float:
    """Calls a second; the device has finished them."""

    def wait() -> None:
        if compute.is_cuda:
            torch.cuda.synchronize(compute.device)

    for _ in range(3 if seconds else 1):
        action()
    wait()
    began, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - began < seconds:
        action()
        count += 1
    wait()
    return count / (time.perf_counter() - began)


class _Utilization:
    """Mean utilization of the GPU in percent while the block runs, as nvidia-smi says; None without one."""

    def __init__(self, compute: Compute) -> None:
        self.mean: float | None = None
        self._is_there = compute.is_cuda and shutil.which("nvidia-smi") is not None
        self._index = compute.device.index or 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "_Utilization":
        if self._is_there:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._is_there:
            self._thread.join()

    def _watch(self) -> None:
        words = ["nvidia-smi", f"--id={self._index}", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        found = []
        while not self._over.wait(0.5):
            said = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
            if said.isdigit():
                found.append(int(said))
        self.mean = sum(found) / len(found) if found else None
