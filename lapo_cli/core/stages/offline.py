"""Stage 3, offline: decode the latent policy from a few labelled frames (paper, section 5.2)."""

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch

from lapo_cli.core.data.batches import FrameLoader
from lapo_cli.core.run_dir import StageDir
from lapo_cli.core.training import decoding
from lapo_cli.core.training.agents import Act, OfflineAgent
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.latent_labels import label_counts, labelled_frames, labelled_pairs
from lapo_cli.core.training.networks import IDM, POLICY, header, load_idm, load_policy
from lapo_cli.core.training.stage import STAGES, Stage, TrainedPolicy, held_out_sample, needs_actions

_NAME = "offline"


def decode(ctx: Context, stage: StageDir) -> dict[str, Any]:
    """Train one decoder for every number of labelled frames; smaller sets are part of larger ones."""
    train, test = ctx.open_store("train"), ctx.open_store("test")
    device, num_actions = ctx.compute.device, ctx.env.require_actions()
    order = labelled_frames(ctx, train)
    counts = label_counts(ctx, len(order))
    idm = load_idm(ctx)
    loaders = [FrameLoader(store.video(), device, resident=False) for store in (train, test)]
    latents, actions = labelled_pairs(ctx, idm, train, order[: counts[-1]], loaders[0])
    test_windows = held_out_sample(ctx, test.labelled(test.video().windows()))
    test_latents, test_actions = labelled_pairs(ctx, idm, test, test_windows, loaders[1])
    decoders, accuracy = {}, {}
    with ctx.progress.task(ctx.title("stage 3 offline: decoders"), len(counts), "decoder") as task:
        for number, count in enumerate(counts, 1):
            decoder = decoding.fit_to_labels(latents[:count], actions[:count], num_actions, ctx.config)
            with torch.no_grad():
                hits = decoder(test_latents).argmax(1) == test_actions
            accuracy[str(count)] = hits.float().mean().item()
            decoders[decoding.weights_name(count)] = decoder
            task.update(number, accuracy=accuracy[str(count)])
    stage.save_weights(decoders, header(ctx, stage, decoder=ctx.config.offline.decoder))
    return {"test_accuracy": accuracy, "test_pairs": len(test_actions)}


def _policies(ctx: Context, stage: StageDir) -> Iterator[TrainedPolicy]:
    counts = sorted(map(int, stage.require_done()["results"]["test_accuracy"]))

    @cache
    def agents() -> dict[int, OfflineAgent]:
        policy, idm = load_policy(ctx), load_idm(ctx)
        decoders = decoding.load_decoders(ctx, stage, idm.quantizer.la_dim)
        return {count: OfflineAgent(policy, decoder, ctx.compute) for count, decoder in decoders.items()}

    def load(count: int) -> Act:
        return agents()[count].act

    for count in counts:
        yield TrainedPolicy(f"{_NAME}-{count}", partial(load, count), labels=count)


STAGES.register(
    Stage(
        name=_NAME,
        label="LAPO decoded offline",
        run=decode,
        command="lapo decode-offline {seed_dir}",
        sections=("data.max_frames", "model", "decoder", "offline"),
        requires=(IDM, POLICY),
        reads=("train", "test"),
        applicable=needs_actions,
        policies=_policies,
        order=30,
    )
)
