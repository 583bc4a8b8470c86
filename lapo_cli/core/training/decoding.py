"""Training of the decoder from latent to true actions, which both forms of stage 3 share (paper, section 4.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lapo_cli.core.config import DecoderConfig
from lapo_cli.core.models.policy import Decoder


def reset(decoder: Decoder) -> None:
    """Give every layer fresh random weights."""
    for layer in decoder:
        if isinstance(layer, torch.nn.Linear):
            layer.reset_parameters()


def fit(decoder: Decoder, latents: Tensor, actions: Tensor, config: DecoderConfig, steps: int) -> float:
    """Train a decoder on pairs (z_t, a_t) by cross-entropy with label smoothing; Adam, shuffled epochs.

    Args:
        decoder: trained in place, on the device of the pairs; its parameters are frozen again afterwards.
        latents: (P, la_dim), any float type.
        actions: (P,) int64.
        steps: updates of at most ``config.batch_size`` pairs.

    Returns:
        The last update's loss.
    """
    decoder.requires_grad_(True)
    optimizer = torch.optim.Adam(decoder.parameters(), config.lr, fused=True)
    loss = torch.zeros(())
    done = 0
    while done < steps:
        for batch in torch.randperm(len(latents)).to(latents.device).split(config.batch_size)[: steps - done]:
            logits = decoder(latents[batch].float())
            loss = F.cross_entropy(logits, actions[batch], label_smoothing=config.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
    decoder.requires_grad_(False)
    return loss.item()


def epochs_to_steps(epochs: int, pairs: int, config: DecoderConfig) -> int:
    """Updates that make ``epochs`` passes over ``pairs``."""
    return epochs * -(-pairs // config.batch_size)
