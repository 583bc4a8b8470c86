"""``run-all`` and its parts: which stages there are, in which order, and over which games and seeds.

A stage run by hand and by :func:`run_all` is the same call; all that passes between stages is files.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from lapo_cli.core import files
from lapo_cli.core.compute import Compute, resolve
from lapo_cli.core.config import section_of
from lapo_cli.core.data.clips import Preparation, find_clips
from lapo_cli.core.data.download import ensure_stores
from lapo_cli.core.data.sources.base import SOURCES
from lapo_cli.core.data.sources.video import preparation_of
from lapo_cli.core.errors import LapoError, MissingInputError, UsageError, describe, one_line
from lapo_cli.core.evaluation.evaluate import candidates, compare, episodic_returns
from lapo_cli.core.evaluation.summary import Failure, Summary
from lapo_cli.core.labelling import Labelled, label_clip
from lapo_cli.core.launchers.base import LAUNCHERS
from lapo_cli.core.progress import Progress
from lapo_cli.core.report import figures
from lapo_cli.core.run_dir import RunDir, SeedDir
from lapo_cli.core.training import stage as stages
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.metrics import require_wandb
from lapo_cli.core.training.stage import STAGES, Stage, StageResult, needs_environment


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:n``.
        data_dir: root of the frame stores.
        fresh: start stages over instead of resuming or skipping them.
        wandb: log to Weights & Biases too.
        jobs: games and seeds side by side.
        launcher: what runs them, by its name in :data:`LAUNCHERS`.
        baselines: include the ceilings and peer methods in ``run-all``.
    """

    device: str = "auto"
    data_dir: Path = field(default_factory=files.data_dir)
    fresh: bool = False
    wandb: bool = False
    jobs: int = 1
    launcher: str = "local"
    baselines: bool = False


@dataclass(frozen=True)
class PlannedStage:
    """A stage that ``run-all`` would come to.

    Attributes:
        state: ``done`` (will be skipped), ``resume``, or ``run`` (also where the configuration has changed since).
    """

    game: str
    seed: int
    stage: str
    state: str


def _compute(run: RunDir, options: Options) -> Compute:
    """What computes.

    Raises:
        UsageError: an option asks for what is not here.
    """
    if options.wandb:
        require_wandb()
    return resolve(options.device, run.config.precision)


def _context(run: RunDir, seed_dir: SeedDir, options: Options, progress: Progress) -> Context:
    compute = _compute(run, options)
    return Context(seed_dir, run.config, compute, options.data_dir, progress, options.fresh, options.wandb)


def chain(*, baselines: bool = False) -> list[Stage]:
    """The stages of ``run-all`` for one game and seed, in order."""
    included = ("always", "baselines") if baselines else ("always",)
    return [stage for stage in STAGES.values() if stage.in_chain in included]


def run_stage(
    run: RunDir, name: str, seed_dirs: list[SeedDir], options: Options, progress: Progress
) -> list[StageResult]:
    """One stage of these games and seeds.

    Raises:
        UnknownNameError: there is no such stage.
        LapoError: it could not be finished.
    """
    stage = STAGES.get(name)
    contexts = [_context(run, seed_dir, options, progress) for seed_dir in seed_dirs]
    for ctx in contexts:
        stages.stage_key(ctx, stage)  # What lacks its inputs is refused before anything is written.
    run.save()
    results = []
    for ctx in contexts:
        results.append(stages.run_stage(ctx, stage))
        figures.draw_learning_curve(results[-1].path)
    return results


def label(
    run: RunDir,
    path: Path,
    video: str | Path,
    out: Path,
    preparation: Preparation | None,
    options: Options,
    progress: Progress,
) -> Labelled:
    """Write the latent actions of a video by the models of the one game and seed at ``path``.

    Args:
        video: a file, or a folder of images.
        out: the npz file; one that is there is set aside if the options say ``fresh``.
        preparation: what becomes of the frames, but for their size; None for what became of those of the data set.

    Raises:
        UsageError: there are several games or seeds or videos there, or ``out`` is there already.
        LapoError: stage 1 is not finished, or the video cannot be read.
    """
    contexts = [_context(run, seed_dir, options, progress) for seed_dir in run.seed_dirs(path)]
    if len(contexts) > 1:
        raise UsageError(f"{path} holds several games or seeds: name one, for example {contexts[0].seed_dir.path}.")
    (ctx,) = contexts
    (clip, *others), _ = find_clips([video])
    if others:
        raise UsageError(f"{video} holds {1 + len(others)} clips: name one of them, for example {clip.path}.")
    if out.exists() and not options.fresh:
        raise UsageError(f"{out} is there already: choose another --out, or set it aside with --fresh.")
    known = preparation_of(options.data_dir, ctx.game) or Preparation()
    # Of the size that the data set has: networks reduce it further, as they did in training.
    preparation = known if preparation is None else replace(preparation, size=known.size)
    files.set_aside(out)
    return label_clip(ctx, clip, preparation, out, threads=os.cpu_count() or 1)


def evaluate(run: RunDir, path: Path, options: Options, progress: Progress) -> Summary:
    """Evaluate every policy found at or below ``path`` (or the one ``path`` lies in) and write the table there.

    Raises:
        UsageError: there is no environment for any of it.
        MissingInputError: nothing there is finished.
    """
    contexts = [_context(run, seed_dir, options, progress) for seed_dir in run.seed_dirs(path)]
    reasons = [needs_environment(ctx) for ctx in contexts]
    if all(reasons):
        raise UsageError(f"Nothing can be evaluated, since {reasons[0]}: give one that fits by --plugin FILE.")
    only = _stage_of(path, contexts)
    if all(len(candidates(ctx, only)) <= 1 for ctx in contexts):
        raise MissingInputError(
            f"{path} holds no finished policy that can act: run 'lapo decode-offline {run.path}', 'lapo "
            f"finetune-online {run.path}' or 'lapo train-expert GAME --run-dir {run.path}' first."
        )
    with run.lock():
        return _summarize(contexts, [], path.absolute(), only)


def run_all(run: RunDir, games: list[str], seeds: list[int], options: Options, progress: Progress) -> Summary:
    """Every stage of every game and seed, then the table. What is finished is skipped, what is cut off resumes.

    A game that fails is noted in the summary and does not stop the others.

    Raises:
        LapoError: nothing could be started at all.
    """
    chains = [Chain(run, game, seed, options) for game in games for seed in seeds]
    _compute(run, options)
    SOURCES.get(run.config.data.source)
    LAUNCHERS.get(options.launcher)
    run.save()
    with run.lock():
        failures = _launch(chains, options, progress)
        failed = {(failure.game, failure.seed) for failure in failures}
        # Evaluated already: the table is made again from what the chains have kept.
        kept = replace(options, fresh=False)
        done = [(chain.game, chain.seed) for chain in chains if (chain.game, chain.seed) not in failed]
        finished = [_context(run, run.seed_dir(*names), kept, progress) for names in done]
        return _summarize(finished, failures, run.path, None, _left_out(finished))


def plan(run: RunDir, games: list[str], seeds: list[int], options: Options) -> list[PlannedStage]:
    """What :func:`run_all` would do, without doing it."""
    planned = []
    config = run.config.model_dump(mode="json")
    for game in games:
        for seed in seeds:
            again: set[str] = set()
            for stage in chain(baselines=options.baselines):
                folder = run.seed_dir(game, seed).stage(stage.name)
                begun = folder.try_read_config()
                changed = any(section_of(config, name) != value for name, value in begun.get("config", {}).items())
                if options.fresh or not begun or changed or again.intersection(stage.requires):
                    state = "run"
                    again.add(stage.name)
                else:
                    state = "resume" if folder.done() is None else "done"
                planned.append(PlannedStage(game, seed, stage.name, state))
    return planned


@dataclass(frozen=True)
class Chain:
    """All of one game and seed, as a job for a launcher."""

    run: RunDir
    game: str
    seed: int
    options: Options

    @property
    def title(self) -> str:
        """Game and seed."""
        return f"{self.game}/{self.seed}"

    def __call__(self, device: str, progress: Progress) -> None:
        """Everything from data to evaluated policies."""
        seed_dir, options = self.run.seed_dir(self.game, self.seed), replace(self.options, device=device)
        ctx = _context(self.run, seed_dir, options, progress)
        data = self.run.config.data
        ensure_stores(self.game, options.data_dir, data.source, data.max_frames, progress)
        for stage in chain(baselines=options.baselines):
            reason = stage.applicable(ctx)
            if reason is not None:
                progress.log(f"{self.game}, seed {self.seed}: {stage.name} is left out, since {reason}.")
                continue
            result = stages.run_stage(ctx, stage)
            if result.skipped:
                progress.log(f"{self.game}, seed {self.seed}: {result.stage} was finished before.")
        for candidate in candidates(ctx):
            episodic_returns(ctx, candidate)


def _failure(chain: Chain, error: Exception, progress: Progress) -> Failure:
    """Note what stopped one game and seed; whatever it was, the others continue."""
    message = one_line(str(error))
    if not isinstance(error, LapoError):
        message = f"{describe(error)}. The stage alone, with --debug, shows the traceback."
    progress.log(f"{chain.game}, seed {chain.seed} stopped: {message}")
    return Failure(chain.game, chain.seed, message)


def _launch(chains: list[Chain], options: Options, progress: Progress) -> list[Failure]:
    """Run all chains; those that failed, in their order."""
    launcher = LAUNCHERS.get(options.launcher)
    if options.jobs > 1:
        for chain in {chain.game: chain for chain in chains}.values():
            # Once for all its seeds, which would get in each other's way; if it fails, its chains report it.
            with suppress(LapoError):
                data = chain.run.config.data
                ensure_stores(chain.game, options.data_dir, data.source, data.max_frames, progress)
    failures: dict[int, Failure] = {}
    with progress.task("games and seeds", len(chains), "run") as task:
        outcomes = launcher.run(chains, slots=options.jobs, device=options.device, progress=progress)
        for finished, (index, error) in enumerate(outcomes, start=1):
            if error is not None:
                failures[index] = _failure(chains[index], error, progress)
            task.update(finished)
    return [failures[index] for index in sorted(failures)]


def _stage_of(path: Path, contexts: list[Context]) -> str | None:
    """The stage folder that ``path`` lies in, if any."""
    for ctx in contexts:
        at, root = path.absolute(), ctx.seed_dir.path.absolute()
        if at != root and at.is_relative_to(root):
            return at.relative_to(root).parts[0]
    return None


def _left_out(contexts: list[Context]) -> list[str]:
    """What could not be run on the data or the environment that there is, and why."""
    reasons = [(ctx.game, stage.name, stage.applicable(ctx)) for ctx in contexts for stage in chain()]
    return list(dict.fromkeys(f"{game}: {name} was left out, since {why}." for game, name, why in reasons if why))


def _summarize(
    contexts: list[Context], failures: list[Failure], path: Path, only: str | None, notes: Sequence[str] = ()
) -> Summary:
    folder = path if path.is_dir() else path.parent
    summary = compare(contexts, failures, folder, only)
    summary.notes.extend(notes)
    seed_dirs: dict[str, list[Path]] = {}
    for ctx in contexts:
        seed_dirs.setdefault(ctx.game, []).append(ctx.seed_dir.path)
    summary.files.extend(figures.draw(folder, summary.rows, seed_dirs))
    summary.write()
    return summary
