"""What a game and seed will take, before it starts: disk, memory, and memory of a GPU.

Estimates of the largest training, that of stage 1: its parameters, gradients and the two moments of AdamW, and what
autograd keeps of a batch, which is measured on two samples; or of the frames that another stage keeps in memory.
"""

from collections.abc import Iterable
from functools import cache

import torch

from lapo_cli.core.compute import Compute
from lapo_cli.core.config import Config, ModelConfig
from lapo_cli.core.launchers.base import Needs
from lapo_cli.core.training.joint_loss import joint_loss
from lapo_cli.core.training.networks import build_idm, build_world_model
from lapo_cli.core.training.stage import Stage

_BYTES_PER_PARAMETER = 16  # float32: itself, gradient, two moments
_PROCESS_BYTES = 500_000_000  # Python, PyTorch and batches on the way; as much again for CUDA's context
_MARGIN = 1.25  # for what is alive for a moment only: measured peaks on a CPU were 1.1 times what is kept
_SAMPLES = 2


def needs(config: Config, stages: Iterable[Stage], *, stores: int, devices: int = 1, workers: int = 1) -> Needs:
    """The estimate for one game and seed.

    Args:
        stages: what will be run.
        stores: how many copies of the game's train frames will be made.
        devices: how many processes train, each on its share of a batch.
        workers: how many processes run stages at a time, started by one that waits for them.
    """
    parameters, kept = _sizes(config.model)
    process = _PROCESS_BYTES + parameters * _BYTES_PER_PARAMETER
    batch = int(_MARGIN * kept * config.stage1.batch_size)
    frame_bytes = 3 * config.model.policy_size**2  # Stores usually hold frames of the size that policies see.
    play = frame_bytes * max((stage.kept_frames(config) for stage in stages), default=0)
    latents = 2 * config.model.quantizer.la_dim * config.data.max_frames
    # Other trainings are taken to be no larger than that of stage 1.
    memory = devices * process + max(batch, play) if workers == 1 else process + workers * (process + batch) + play
    return Needs(
        disk=stores * config.data.max_frames * frame_bytes + latents + 3 * 4 * parameters,
        memory=memory,
        gpu_memory=process + batch // devices,
    )


@cache
def _sizes(model: ModelConfig) -> tuple[int, int]:
    """Parameters of the networks of stage 1, and bytes that autograd keeps of a sample."""
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.random.fork_rng(devices=[]):
        idm, world_model = build_idm(model), build_world_model(model)
        own = {p.untyped_storage().data_ptr() for module in (idm, world_model) for p in module.parameters()}
        frames = torch.zeros(_SAMPLES, 3, 3, model.frame_size, model.frame_size)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss, _ = joint_loss(idm, world_model, frames, Compute(torch.device("cpu"), False), 0.0)
    del loss
    parameters = sum(p.numel() for module in (idm, world_model) for p in module.parameters())
    return parameters, sum(size for place, size in kept.items() if place not in own) // _SAMPLES
