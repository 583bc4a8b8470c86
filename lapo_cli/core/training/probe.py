"""The probe: how much of the true action a latent action carries. It measures only; nothing flows back."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn


def split_by_episode(
    windows: NDArray[np.int64], episode_starts: NDArray[np.bool_], *, most: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two random sets of windows, of at most ``most`` each, that share no episode.

    Neighbouring frames are nearly equal, so a probe must not be tested on episodes that it was trained on. A single
    episode is cut in the middle, and no frame is in windows of both sides.

    Args:
        windows: centres (W,), ascending.
        episode_starts: (N,), of the store.
        most: windows per set.
        seed: of the choice.
    """
    rng = np.random.default_rng(seed)
    episode = np.cumsum(episode_starts)[windows]
    names, sizes = np.unique(episode, return_counts=True)
    if len(names) > 1:
        order = rng.permutation(len(names))
        # As many of the shuffled episodes as come nearest to half of the windows, at least one on either side.
        before = np.cumsum(sizes[order])[:-1]
        count = int(np.abs(before - len(windows) / 2).argmin()) + 1
        first = np.isin(episode, names[order[:count]])
        halves = windows[first], windows[~first]
    else:
        middle = windows[len(windows) // 2 :][:1]
        halves = windows[windows < middle - 1], windows[windows > middle + 1]
    one, other = (rng.permutation(half)[:most] for half in halves)
    return one, other


def probe_accuracy(
    latents: Tensor,
    actions: NDArray[np.integer[Any]],
    num_actions: int,
    *,
    split: int,
    epochs: int,
    seed: int,
    batch_size: int = 128,
) -> float:
    """Accuracy of an MLP (128, 128) that reads the action off the latent action (paper, appendix A).

    Trained with AdamW on the first ``split`` pairs, tested on the others.

    Args:
        latents: z, (P, la_dim) float32 on any device.
        actions: true actions, (P,).
        num_actions: how many there are.
        split: how many of the pairs are for training.
        epochs: passes over these.
        seed: of the probe's weights and order.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[latents.device] if latents.is_cuda else []):
        torch.manual_seed(seed)
        probe = nn.Sequential(
            nn.Linear(latents.shape[1], 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, num_actions)
        ).to(latents.device)
    labels = torch.from_numpy(np.asarray(actions, np.int64)).to(latents.device)
    # Latents of an untrained or barely trained network are tiny; the probe should not depend on their scale.
    latents = (latents - latents[:split].mean(0)) / (latents[:split].std(0) + 1e-6)
    optimizer = torch.optim.AdamW(probe.parameters(), fused=True)
    for _ in range(epochs):
        for batch in torch.randperm(split, generator=generator).to(latents.device).split(batch_size):
            loss = F.cross_entropy(probe(latents[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        hits: Tensor = probe(latents[split:]).argmax(1) == labels[split:]
    return hits.float().mean().item()


def majority_accuracy(actions: NDArray[np.integer[Any]], *, split: int) -> float:
    """Accuracy of the majority baseline: after the first ``split`` actions (P,), always the most frequent of those."""
    majority = np.bincount(actions[:split]).argmax()
    return float((actions[split:] == majority).mean())
