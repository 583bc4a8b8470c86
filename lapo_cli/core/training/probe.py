"""The probe: how much of the true action a latent action carries. It measures only; nothing flows back."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn


def probe_accuracy(
    latents: Tensor,
    actions: NDArray[np.integer[Any]],
    num_actions: int,
    *,
    epochs: int,
    seed: int,
    batch_size: int = 128,
) -> float:
    """Accuracy of an MLP (128, 128) that reads the action off the latent action (paper, appendix A).

    Trained with AdamW on the first half of the pairs, tested on the second.

    Args:
        latents: z, (P, la_dim) float32 on any device.
        actions: true actions, (P,).
        num_actions: how many there are.
        epochs: passes over the first half.
        seed: of the probe's weights and order.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[latents.device] if latents.is_cuda else []):
        torch.manual_seed(seed)
        probe = nn.Sequential(
            nn.Linear(latents.shape[1], 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, num_actions)
        ).to(latents.device)
    labels = torch.from_numpy(np.asarray(actions, np.int64)).to(latents.device)
    half = len(latents) // 2
    # Latents of an untrained or barely trained network are tiny; the probe should judge what they say, not how loudly.
    latents = (latents - latents[:half].mean(0)) / (latents[:half].std(0) + 1e-6)
    optimizer = torch.optim.AdamW(probe.parameters(), fused=True)
    for _ in range(epochs):
        for batch in torch.randperm(half, generator=generator).to(latents.device).split(batch_size):
            loss = F.cross_entropy(probe(latents[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        hits: Tensor = probe(latents[half:]).argmax(1) == labels[half:]
    return hits.float().mean().item()


def majority_accuracy(actions: NDArray[np.integer[Any]]) -> float:
    """Accuracy of the majority baseline: on the second half, always the most frequent action of the first."""
    half = len(actions) // 2
    majority = np.bincount(actions[:half]).argmax()
    return float((actions[half:] == majority).mean())
