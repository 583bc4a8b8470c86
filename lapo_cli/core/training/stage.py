"""Stages: the descriptor of each one, and what all of them do around their work.

A stage is one file that ends in ``STAGES.register(Stage(...))``. The chain of ``run-all``, what ``evaluate`` plays,
tables, legends and the network that a weights file needs all derive from these descriptors.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lapo_cli.core import distributed
from lapo_cli.core.compute import Compute
from lapo_cli.core.config import PLUGIN_SECTIONS, Config, Section, section_of
from lapo_cli.core.config_loading import parse_config
from lapo_cli.core.data.store import SPLITS, Split
from lapo_cli.core.errors import MissingInputError, UsageError
from lapo_cli.core.registry import Registry
from lapo_cli.core.run_dir import SeedDir, StageDir, fingerprint
from lapo_cli.core.training.agents import Act, Agent
from lapo_cli.core.training.context import Context

_HELD_OUT_WINDOWS = 4096


@dataclass(frozen=True)
class StageResult:
    """How a stage ended.

    Attributes:
        results: what :attr:`Stage.run` returned, JSON-like.
        skipped: it was done before, with the same configuration and inputs.
    """

    game: str
    seed: int
    stage: str
    path: Path
    results: dict[str, Any]
    skipped: bool


@dataclass(frozen=True)
class TrainedPolicy:
    """A policy that can be evaluated; those of one stage differ in ``labels`` or ``env_steps``.

    Attributes:
        name: of its file among the evaluations.
        load: makes it ready to act; called only if it has to play.
        labels: labelled frames it was decoded from, if it was.
        env_steps: environment steps it was trained for, if it was.
    """

    name: str
    load: Callable[[], Act]
    labels: int | None = None
    env_steps: int | None = None


@dataclass(frozen=True)
class Stage:
    """The descriptor of a stage.

    Attributes:
        name: of its folder.
        label: as progress, tables and legends call it.
        run: does the work in the stage's folder, and returns its results, JSON-like.
        sections: the parts of the configuration that its outcome depends on.
        command: how to run it by hand; ``{name}``, ``{game}``, ``{seed}``, ``{run_dir}`` and ``{seed_dir}`` are filled
            in.
        requires: earlier stages whose outputs it uses.
        reads: stores that it uses.
        applicable: why it cannot be run on this game and data, or None; ``run-all`` then leaves it out.
        policies: the policies that a finished stage offers to ``evaluate``.
        build_agent: the network, untrained, of a weights file with this header; None if the stage makes no agent.
        in_chain: whether ``run-all`` includes it: always, only with ``--baselines``, or never.
        order: its place in ``run-all`` and in tables.
        trainings: how many agents and models it trains, one after another; where several stages can start side by
            side, those with most start first, after those that others need.
        config: the class of a section ``plugins.<name>`` of its own; for stages that plugins add.
        configure: the configuration that it works with, from the run's.
        variant: of the context that it works in, see :class:`Context`.
        parallel: whether several processes can train its model together, see :mod:`lapo_cli.core.distributed`.
        kept_frames: how many frames of play it keeps in memory, for the estimate of what a run takes.
    """

    name: str
    label: str
    run: Callable[[Context, StageDir], dict[str, Any]]
    sections: tuple[str, ...]
    command: str = "lapo run-stage {name} {seed_dir}"
    requires: tuple[str, ...] = ()
    reads: tuple[Split, ...] = ()
    applicable: Callable[[Context], str | None] = lambda ctx: None
    policies: Callable[[Context, StageDir], Iterable[TrainedPolicy]] = lambda ctx, stage: ()
    build_agent: Callable[[Mapping[str, Any], Compute], Agent] | None = None
    in_chain: Literal["always", "baselines", "never"] = "always"
    order: int = 100
    trainings: Callable[[Config], int] = lambda config: 1
    config: type[Section] | None = None
    configure: Callable[[Config], Config] = lambda config: config
    variant: str = ""
    parallel: bool = False
    kept_frames: Callable[[Config], int] = lambda config: 0

    def command_for(self, ctx: Context) -> str:
        """The command line that runs it on this game and seed."""
        seed_dir = ctx.seed_dir
        return self.command.format(
            name=self.name, game=seed_dir.game, seed=seed_dir.seed, run_dir=seed_dir.run_path, seed_dir=seed_dir.path
        )


class _Stages(Registry[Stage]):
    def register(self, item: Stage) -> Stage:
        """See :meth:`Registry.register`; the section of a stage is known from then on."""
        super().register(item)
        if item.config is not None:
            PLUGIN_SECTIONS[item.name] = item.config
        return item

    def values(self) -> list[Stage]:
        """All stages in their order."""
        return sorted(super().values(), key=lambda stage: stage.order)


STAGES = _Stages("stage", "lapo.stages", "lapo_cli.core.stages")


def needs_environment(ctx: Context) -> str | None:
    """Why a stage that acts cannot be run, for :attr:`Stage.applicable`."""
    return f"there is no environment for {ctx.game} to act in" if ctx.env.make is None else None


def needs_actions(ctx: Context) -> str | None:
    """Why a stage that needs true actions cannot be run, for :attr:`Stage.applicable`."""
    for split in SPLITS:
        store = ctx.open_store(split)
        if store.actions is None:
            return f"the {split} frames of {ctx.game} have no true actions"
        windows = store.video().windows(ctx.config.data.max_frames if split == "train" else None)
        if len(store.labelled(windows)) == 0:
            return f"the true action is not known for any {split} frame of {ctx.game}"
    return None


def stage_key(ctx: Context, stage: Stage) -> dict[str, Any]:
    """All that the outcome depends on: sections of the configuration, precision, seed, and inputs by fingerprint.

    Raises:
        UsageError: the stage does not apply to this data.
        MissingInputError: an earlier stage is not finished, or a store is not there.
    """
    reason = stage.applicable(ctx)
    if reason is not None:
        raise UsageError(f"Stage '{stage.name}' cannot be run: {reason}.")
    config = stage.configure(ctx.config).model_dump(mode="json")
    inputs = {name: output_fingerprint(ctx, name) for name in stage.requires}
    inputs |= {split: ctx.open_store(split).manifest.fingerprint for split in stage.reads}
    return {
        "stage": stage.name,
        "game": ctx.game,
        "seed": ctx.seed_dir.seed,
        "inputs": inputs,
        "precision": "bf16" if ctx.compute.bf16 else "fp32",
        "config": sections_of(stage, config),
    }


def sections_of(stage: Stage, config: dict[str, Any]) -> dict[str, Any]:
    """Name -> content of the sections of a dumped configuration that a stage depends on, its own included."""
    own = () if stage.config is None else (f"plugins.{stage.name}",)
    return {section: section_of(config, section) for section in (*stage.sections, *own)}


def output_fingerprint(ctx: Context, name: str) -> str:
    """Fingerprint of what a finished stage made; raises as :func:`require_stage`."""
    return require_stage(ctx, name).output_fingerprint(name)


def run_stage(ctx: Context, stage: Stage) -> StageResult:
    """Do a stage's work in its folder unless it is done already, then mark it done with the numbers it returns.

    Precision ``auto`` is that of the hardware for a new stage, and for one that was begun elsewhere the precision that
    it was begun in, so that no training mixes the two.

    The caller holds the lock of the game and seed.

    Raises:
        UsageError: the stage does not apply to this data.
        MissingInputError: an earlier stage is not finished, or data is not there.
    """
    folder = ctx.seed_dir.stage(stage.name)
    device = ctx.compute.name
    precision, begun = distributed.on_main(lambda: _begin(ctx, stage, folder, device))
    if begun:
        ctx = ctx.with_precision(precision)
        torch.manual_seed(stage_seed(ctx, stage.name.removesuffix(stage.variant)))  # Variants begin alike.
        results = stage.run(replace(ctx, config=stage.configure(ctx.config), variant=stage.variant), folder)
        distributed.on_main(lambda: folder.finish(results))
    results = folder.require_done()["results"]
    return StageResult(ctx.game, ctx.seed_dir.seed, stage.name, folder.path, results, skipped=not begun)


def is_finished(ctx: Context, stage: Stage) -> bool:
    """Whether :func:`run_stage` would have nothing to do.

    Raises:
        LapoError: there is a finished stage, which is damaged or whose inputs are not there.
    """
    done = None if ctx.fresh else ctx.seed_dir.stage(stage.name).done()
    return done is not None and done["key"] == fingerprint(_key_to_go_on(ctx, stage))


def _begin(ctx: Context, stage: Stage, folder: StageDir, device: str) -> tuple[str, bool]:
    """The precision to work in, and whether there is anything to do."""
    key = _key_to_go_on(ctx, stage)
    begun = folder.begin(key, fresh=ctx.fresh, label=stage.label, device=device)
    return key["precision"], begun


def _key_to_go_on(ctx: Context, stage: Stage) -> dict[str, Any]:
    """The key of a stage, or the one that it was begun with, by an earlier version or elsewhere, if it means the same.

    It does if the settings that are new since then have their defaults, and precision, where it is left to us, counts
    for nothing.
    """
    key = stage_key(ctx, stage)
    if ctx.fresh:
        return key
    earlier = ctx.seed_dir.stage(stage.name).try_read_config()
    same = {**key, "config": sections_since(stage, ctx.config, earlier.get("config", {}))}
    if ctx.config.precision == "auto":
        same["precision"] = earlier.get("precision")
    return same if earlier.get("key") == fingerprint(same) else key


def sections_since(stage: Stage, config: Config, earlier: dict[str, Any]) -> dict[str, Any]:
    """The sections that a stage depends on, equal to its ``earlier`` ones if both mean the same.

    Settings that ``earlier`` lacks, because the version that recorded it did not have them, are left out where they
    have their default.
    """
    quantizer, target = config.model.quantizer.kind, config.stage2.target.kind
    # Each kind has settings of its own.
    default = parse_config({"model": {"quantizer": {"kind": quantizer}}, "stage2": {"target": {"kind": target}}})
    now, defaults = (sections_of(stage, stage.configure(c).model_dump(mode="json")) for c in (config, default))
    sections: dict[str, Any] = _without_new_settings(now, earlier, defaults)
    return sections


def _without_new_settings(now: Any, earlier: Any, default: Any) -> Any:
    """The settings without those that ``earlier`` lacks and that have their default, which is what was done before."""
    if not (isinstance(now, dict) and isinstance(earlier, dict) and isinstance(default, dict)):
        return now
    return {
        name: _without_new_settings(value, earlier.get(name), default.get(name))
        for name, value in now.items()
        if name in earlier or value != default.get(name)
    }


def require_stage(ctx: Context, name: str) -> StageDir:
    """The folder of a finished stage.

    Raises:
        MissingInputError: it is not finished, or what it was made from has been replaced since; the message names the
            command.
    """
    folder, command = ctx.seed_dir.stage(name), STAGES.get(name).command_for(ctx)
    folder.require_done(command)
    if not is_current(ctx.seed_dir, name):
        raise MissingInputError(
            f"Stage '{name}' in {folder.path.parent} was made from a stage that has been replaced since: run "
            f"'{command}' first."
        )
    return folder


def is_current(seed_dir: SeedDir, name: str) -> bool:
    """Whether a stage is finished, and the stages that it was made from are still there and current themselves."""
    return seed_dir.stage(name).done() is not None and has_current_inputs(seed_dir, name)


def has_current_inputs(seed_dir: SeedDir, name: str) -> bool:
    """Whether the stages that a finished or unfinished stage was begun with are still there and current themselves."""
    for earlier, made in seed_dir.stage(name).read_config().get("inputs", {}).items():
        if earlier in SPLITS:  # Policies are what they are, whether or not their frames are still there.
            continue
        if not is_current(seed_dir, earlier) or seed_dir.stage(earlier).output_fingerprint(earlier) != made:
            return False
    return True


def run_part(
    ctx: Context, folder: StageDir, purpose: str, key: Mapping[str, Any], work: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
    """Do a part of a stage in a folder of its own unless it is finished there, and return its results.

    Args:
        purpose: seeds its random numbers, see :func:`stage_seed`.
        key: what tells it from the stage's other parts.
        work: does it and returns numbers to report.
    """
    if folder.done() is None:
        torch.manual_seed(stage_seed(ctx, purpose))
        folder.begin(key, fresh=False)
        folder.finish(work())
    return folder.require_done()["results"]


def stage_seed(ctx: Context, purpose: str) -> int:
    """A seed of its own for every game, seed and purpose, so that no two share a stream of random numbers."""
    text = f"{ctx.game}/{ctx.seed_dir.seed}/{purpose}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") >> 1


def held_out_sample(ctx: Context, windows: NDArray[np.int64]) -> NDArray[np.int64]:
    """4,096 of the windows (W,) of the test store, ascending, or all of fewer: what stages measure errors on.

    Drawn from all of it, since the first episodes alone may be of one player: which ones is up to game and seed.
    """
    rng = np.random.default_rng(stage_seed(ctx, "held out"))
    return np.sort(rng.permutation(windows)[:_HELD_OUT_WINDOWS])
