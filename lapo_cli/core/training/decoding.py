"""Training of decoders from latent to true actions: the paper's MLP (section 4.3), and a linear one of few labels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lapo_cli.core.config import Config, DecoderConfig
from lapo_cli.core.models.policy import DECODERS, Decoder
from lapo_cli.core.run_dir import WEIGHTS, StageDir, read_about
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.networks import actions_of

# Small, so that biases follow how often actions occur; positive, so that an action without a label has a finite logit.
_INTERCEPT_L2 = 0.1


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


def fit_linear(latents: Tensor, actions: Tensor, num_actions: int, l2: float) -> torch.nn.Linear:
    """Logistic regression from z_t to a_t: the one optimum of a convex objective, whatever the seed.

    With a few labels for a hundred dimensions the MLP fits the labels exactly and is confident everywhere; the penalty
    is a Gaussian prior on the weights. It applies to z shifted and scaled, all of it by one number, to zero mean and
    unit variance over the pairs, since games differ in the scale of z by a factor of ten.

    Args:
        latents: (P, la_dim), any float type.
        actions: (P,) int64.
        num_actions: classes, whether or not ``actions`` has all of them.
        l2: the summed cross-entropy has ``l2`` times the squared norm of the weights added.

    Returns:
        The decoder of z as it is, frozen, on the device of the pairs.
    """
    z, actions = latents.detach().cpu().double(), actions.cpu()
    mean = z.mean(0)
    scale = (z - mean).square().mean().sqrt().clamp_min(1e-6)  # z may have collapsed to a point.
    z = (z - mean) / scale
    weight = torch.zeros(num_actions, z.shape[1], dtype=z.dtype, requires_grad=True)
    bias = torch.zeros(num_actions, dtype=z.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, history_size=20, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        errors = F.cross_entropy(F.linear(z, weight, bias), actions, reduction="sum")
        loss = (errors + l2 * weight.square().sum() + _INTERCEPT_L2 * bias.square().sum()) / len(z)
        loss.backward()
        return loss

    optimizer.step(objective)
    decoder = torch.nn.Linear(z.shape[1], num_actions).requires_grad_(False)
    with torch.no_grad():
        decoder.weight.copy_(weight / scale)
        decoder.bias.copy_(bias - F.linear(mean / scale, weight))
    return decoder.to(latents.device)


def fit_to_labels(latents: Tensor, actions: Tensor, num_actions: int, config: Config) -> torch.nn.Module:
    """The configured decoder (``offline.decoder``), trained on a few labelled frames.

    Args:
        latents: z (P, la_dim).
        actions: (P,) int64.
        num_actions: how many there are.

    Returns:
        The decoder of z (B, la_dim) to logits (B, num_actions), frozen, on the device of the pairs.
    """
    if config.offline.decoder == "linear":
        return fit_linear(latents, actions, num_actions, config.offline.l2)
    decoder = Decoder(latents.shape[1], num_actions).to(latents.device)
    fit(decoder, latents, actions, config.decoder, config.offline.steps)
    return decoder


def epochs_to_steps(epochs: int, pairs: int, config: DecoderConfig) -> int:
    """Updates that make ``epochs`` passes over ``pairs``."""
    return epochs * -(-pairs // config.batch_size)


def weights_name(count: int) -> str:
    """The name that the decoder of so many labels has in the weights file of ``decode-offline``."""
    return f"decoder_{count}"


def load_decoders(ctx: Context, stage: StageDir, la_dim: int) -> dict[int, torch.nn.Module]:
    """The trained decoders of latent actions (B, la_dim) in the finished stage's folder: labels -> decoder.

    Raises:
        CorruptDataError: its weights are damaged.
    """
    counts = sorted(map(int, stage.require_done()["results"]["test_accuracy"]))
    about = read_about(stage.path / WEIGHTS)
    build = DECODERS[about.get("decoder", "mlp")]
    decoders = {count: build(la_dim, actions_of(about)) for count in counts}
    stage.load_weights({weights_name(count): decoder for count, decoder in decoders.items()})
    for decoder in decoders.values():
        ctx.compute.place(decoder)
    return decoders
