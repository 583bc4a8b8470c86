"""``run-all`` and its parts, over games and seeds; :mod:`lapo_cli.core.chains` has the stages of one of each.

A stage run by hand and by :func:`run_all` is the same call; all that passes between stages is files.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from lapo_cli.core import distributed, files
from lapo_cli.core.chains import Chain, chain, compute_of, context_of, what_stopped
from lapo_cli.core.chains import Options as Options  # what every function here takes
from lapo_cli.core.config import Config, Section, section_of
from lapo_cli.core.config_loading import parse_settings
from lapo_cli.core.data.clips import Preparation, find_clips
from lapo_cli.core.data.sources.base import SOURCES
from lapo_cli.core.data.sources.video import preparation_of
from lapo_cli.core.data.store import SPLITS, store_path
from lapo_cli.core.errors import (
    CorruptDataError,
    LapoError,
    MissingInputError,
    UsageError,
    one_line,
)
from lapo_cli.core.evaluation.evaluate import FOLDER as EVALUATION
from lapo_cli.core.evaluation.evaluate import candidates, episodic_returns
from lapo_cli.core.evaluation.measurements import FOLDER as MEASUREMENTS
from lapo_cli.core.evaluation.measurements import measure
from lapo_cli.core.evaluation.summary import Failure, Summary
from lapo_cli.core.labelling import Labelled, label_clip
from lapo_cli.core.launchers.base import LAUNCHERS, Launcher
from lapo_cli.core.play.server import Server
from lapo_cli.core.play.session import Session
from lapo_cli.core.progress import Progress, Silent
from lapo_cli.core.report.images import draw_learning_curve, write_images
from lapo_cli.core.report.page import REPORT, write_report
from lapo_cli.core.report.results import read_run
from lapo_cli.core.report.tables import summarize
from lapo_cli.core.run_dir import RunDir, SeedDir
from lapo_cli.core.training import stage as stages
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.networks import IDM
from lapo_cli.core.training.stage import (
    STAGES,
    Stage,
    StageResult,
    has_current_inputs,
    needs_environment,
    sections_since,
)


@dataclass(frozen=True)
class PlannedStage:
    """A stage that ``run-all`` would come to.

    Attributes:
        state: ``done`` (will be skipped), ``resume``, ``run`` (also where the configuration has changed since), or
            ``left out`` (the data or environment lacks what it needs).
    """

    game: str
    seed: int
    stage: str
    state: str


def run_stage(
    run: RunDir, name: str, seed_dirs: list[SeedDir], options: Options, progress: Progress
) -> list[StageResult]:
    """One stage of these games and seeds, by this process or by all that torchrun started.

    Raises:
        UnknownNameError: there is no such stage.
        UsageError: torchrun started several processes, and the stage is for one.
        LapoError: it could not be finished.
    """
    stage = STAGES.get(name)
    results = []
    with distributed.processes():
        here = progress if distributed.is_main() else Silent()
        contexts = distributed.on_all(lambda: _ready(run, stage, seed_dirs, options, here))
        distributed.on_main(run.save)
        for ctx in contexts:
            with ExitStack() as stack:
                distributed.on_main(partial(stack.enter_context, ctx.seed_dir.lock()))
                results.append(stages.run_stage(ctx, stage))
            distributed.on_main(partial(draw_learning_curve, results[-1].path))
    return results


def _ready(run: RunDir, stage: Stage, seed_dirs: list[SeedDir], options: Options, progress: Progress) -> list[Context]:
    """The contexts; what lacks its inputs or cannot be shared is refused before anything is written."""
    if distributed.world_size() > 1:
        if not stage.parallel:
            raise UsageError(f"Stage '{stage.name}' is trained by one process: run it without torchrun.")
        _require_shares(run.config, stage)
    contexts = [context_of(run, seed_dir, options, progress) for seed_dir in seed_dirs]
    for ctx in contexts:
        stages.stage_key(ctx, stage)
    return contexts


def _require_shares(config: Config, stage: Stage) -> None:
    """Raise a UsageError if the processes cannot share a stage's batches evenly."""
    sections = stage.configure(config).model_dump()
    for section in stage.sections:
        values = section_of(sections, section)
        distributed.part(values.get("batch_size", 0) if isinstance(values, dict) else 0)


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
    contexts = [context_of(run, seed_dir, options, progress) for seed_dir in run.seed_dirs(path)]
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
    return label_clip(ctx, clip, preparation, out, threads=os.cpu_count() or 1)


def evaluate(run: RunDir, path: Path, options: Options, progress: Progress) -> Summary:
    """Evaluate every policy found at or below ``path`` (or the one ``path`` lies in) and measure its latent actions.

    The table is written at ``path``, the report into the run directory. A game and seed that cannot act here, or is
    damaged, is noted among the failures and does not stop the others; what has been kept of it stays in the report.

    Raises:
        MissingInputError: nothing there is finished.
        RunDirError: another process works on one of these games and seeds.
    """
    contexts = [context_of(run, seed_dir, options, progress) for seed_dir in run.seed_dirs(path)]
    only = _stage_of(path, contexts)
    names = [stage.name for stage in STAGES.values() if only in (None, stage.name)]
    if not any(_has_results(ctx, name) for ctx in contexts for name in names):
        raise MissingInputError(
            f"{path} holds no finished stage: run 'lapo train-idm GAME --run-dir {run.path}' or 'lapo train-expert "
            f"GAME --run-dir {run.path}' first."
        )
    failures, notes, played = [], [], []
    for ctx in contexts:
        with ctx.seed_dir.lock():
            try:
                reason = needs_environment(ctx)
                if reason is not None:
                    notes.append(f"{ctx.game}: nothing can be evaluated, since {reason}.")
                for candidate in candidates(ctx, only):
                    episodic_returns(ctx, candidate)
                played.append(replace(ctx, fresh=False))
            except LapoError as error:
                failures.append(Failure(ctx.game, ctx.seed_dir.seed, one_line(str(error))))
            measure(ctx)
    with run.lock(progress):
        return _summarize(run, played, failures, path.absolute(), only, list(dict.fromkeys(notes)))


def play(run: RunDir, path: Path, options: Options, progress: Progress, port: int) -> Server:
    """A server of the world model of the first game and seed at or below ``path`` whose stage 1 is finished.

    Raises:
        MissingInputError: there is none, or its data is not there.
        UsageError: the port is taken.
    """
    contexts = [context_of(run, seed_dir, options, progress) for seed_dir in run.seed_dirs(path)]
    ctx = next((ctx for ctx in contexts if ctx.seed_dir.stage(IDM).done() is not None), contexts[0])
    return Server(Session(ctx), f"{ctx.game}, seed {ctx.seed_dir.seed}: the learned world", port)


def run_all(run: RunDir, games: list[str], seeds: list[int], options: Options, progress: Progress) -> Summary:
    """Every stage of every game and seed, then the table. What is finished is skipped, what is cut off resumes.

    A game that fails is noted in the summary and does not stop the others. Several calls may work on one run at a time,
    here or on other machines: each game and seed is worked on by one of them, and the others wait for it.

    Raises:
        RunDirError: with ``fresh``, another process works on one of these games and seeds.
        LapoError: nothing could be started at all.
    """
    included = chain(run.config, baselines=options.baselines)
    compute_of(run, options)
    SOURCES.get(run.config.data.source)
    launcher, settings = _launcher(options)
    launcher.require(settings)
    run.save()
    if options.fresh:
        _start_over([run.seed_dir(game, seed) for game in games for seed in seeds], included)
        options = replace(options, fresh=False)  # Or a job that an engine starts again would start over again.
    chains = _chains(run, games, seeds, options)
    failures = _launch(chains, launcher, settings, options, progress)
    failed = {(failure.game, failure.seed) for failure in failures}
    done = [(chain.game, chain.seed) for chain in chains if (chain.game, chain.seed) not in failed]
    finished = [context_of(run, run.seed_dir(*names), options, progress) for names in done]
    with run.lock(progress):  # Evaluated already: the table is made from what the chains have kept.
        return _summarize(run, finished, failures, run.path, None, _left_out(finished, included))


def run_chain(run: RunDir, game: str, seed: int, options: Options, progress: Progress) -> list[StageResult]:
    """All of one game and seed, from data to evaluated policies, as :func:`run_all` does it; no table is made.

    By this process, or by all that torchrun started: they share the trainings that can be shared, and the main
    process does the rest while the others wait.

    Any number of calls may work on one run at a time; a second one for the same game and seed waits for the first.

    Returns:
        The stages of this game and seed that apply to it.

    Raises:
        RunDirError: with ``fresh``, another process works on this game and seed.
        LapoError: it could not be finished.
    """
    included = chain(run.config, baselines=options.baselines)

    def prepare() -> None:
        SOURCES.get(run.config.data.source)
        run.save()
        if options.fresh:
            _start_over([run.seed_dir(game, seed)], included)

    with distributed.processes():
        distributed.on_all(lambda: compute_of(run, options))
        for stage in included:
            if stage.parallel:
                _require_shares(run.config, stage)
        distributed.on_main(prepare)
        here = progress if distributed.is_main() else Silent()
        return Chain(run, game, seed, replace(options, fresh=False)).run_stages(options.device, here)


def _start_over(seed_dirs: list[SeedDir], included: list[Stage]) -> None:
    """Set aside what there is of these stages, and the evaluations.

    Raises:
        RunDirError: another process works on one of these games and seeds; nothing has been set aside.
    """
    with ExitStack() as stack:
        for seed_dir in seed_dirs:
            stack.enter_context(seed_dir.lock())
        for seed_dir in seed_dirs:
            for name in (*(stage.name for stage in included), EVALUATION, MEASUREMENTS):
                files.set_aside(seed_dir.path / name)


def plan(run: RunDir, games: list[str], seeds: list[int], options: Options) -> list[PlannedStage]:
    """What :func:`run_all` would do, without doing it; whether data has changed since is not looked at.

    Raises:
        LapoError: it would be refused, apart from what the launcher needs.
    """
    compute_of(run, options)
    SOURCES.get(run.config.data.source)
    planned = []
    for game in games:
        there = all(store_path(options.data_dir, game, split).exists() for split in SPLITS)
        for seed in seeds:
            ctx = context_of(run, run.seed_dir(game, seed), options, Silent())
            again: set[str] = set()
            for stage in chain(run.config, baselines=options.baselines):
                if there and _is_left_out(stage, ctx):
                    planned.append(PlannedStage(game, seed, stage.name, "left out"))
                    continue
                folder = ctx.seed_dir.stage(stage.name)
                begun = folder.try_read_config()
                before = begun.get("config")
                changed = (
                    before is None
                    or before != sections_since(stage, run.config, before)
                    or run.config.precision not in ("auto", begun.get("precision"))
                )
                if (
                    options.fresh
                    or changed
                    or again.intersection(stage.requires)
                    or not has_current_inputs(ctx.seed_dir, stage.name)
                ):
                    state = "run"
                    again.add(stage.name)
                else:
                    state = "resume" if folder.done() is None else "done"
                planned.append(PlannedStage(game, seed, stage.name, state))
    return planned


def _has_results(ctx: Context, name: str) -> bool:
    try:
        return ctx.seed_dir.stage(name).done() is not None
    except CorruptDataError:  # There are some, whose damage is reported with their game.
        return True


def _is_left_out(stage: Stage, ctx: Context) -> bool:
    try:
        return stage.applicable(ctx) is not None
    except LapoError:  # Of damaged data, for example, which the stage reports.
        return False


def _chains(run: RunDir, games: list[str], seeds: list[int], options: Options) -> list[Chain]:
    """The jobs of a run, with absolute paths: they may be carried out in another working directory."""
    run = replace(run, path=run.path.absolute())
    scratch = None if options.scratch is None else options.scratch.absolute()
    options = replace(options, data_dir=options.data_dir.absolute(), scratch=scratch)
    return [Chain(run, game, seed, options) for game in games for seed in seeds]


def _failure(chain: Chain, error: Exception, progress: Progress) -> Failure:
    """Note what stopped one game and seed; whatever it was, the others continue."""
    message = what_stopped(error)
    progress.log(f"{chain.game}, seed {chain.seed} stopped: {message}")
    return Failure(chain.game, chain.seed, message)


def _launcher(options: Options) -> tuple[Launcher, Section]:
    """The launcher and its settings.

    Raises:
        UnknownNameError, ConfigError: there is no such launcher or setting.
    """
    launcher = LAUNCHERS.get(options.launcher)
    return launcher, parse_settings(launcher.Settings or Section, options.launcher_settings)


def preview(run: RunDir, games: list[str], seeds: list[int], options: Options) -> str:
    """What :func:`run_all` would hand to the program that its launcher uses, such as a script; empty if nothing."""
    launcher, settings = _launcher(options)
    chains = _chains(run, games, seeds, options)
    return launcher.preview(chains, slots=options.jobs, device=options.device, settings=settings)


def _launch(
    chains: list[Chain], launcher: Launcher, settings: Section, options: Options, progress: Progress
) -> list[Failure]:
    """Run all chains; those that failed, in their order."""
    failures: dict[str, Failure] = {}
    with progress.task("games and seeds", len(chains), "run") as task:
        outcomes = launcher.run(chains, slots=options.jobs, device=options.device, progress=progress, settings=settings)
        for finished, (job, error) in enumerate(outcomes, start=1):
            if error is not None:
                assert isinstance(job, Chain)
                failures[job.title] = _failure(job, error, progress)
            task.update(finished)
    return [failures[chain.title] for chain in chains if chain.title in failures]


def _stage_of(path: Path, contexts: list[Context]) -> str | None:
    """The stage folder that ``path`` lies in, if any."""
    for ctx in contexts:
        at, root = path.absolute(), ctx.seed_dir.path.absolute()
        if at != root and at.is_relative_to(root):
            return at.relative_to(root).parts[0]
    return None


def _left_out(contexts: list[Context], included: list[Stage]) -> list[str]:
    """What could not be run on the data or the environment that there is, and why."""
    reasons = [(ctx.game, stage.name, stage.applicable(ctx)) for ctx in contexts for stage in included]
    return list(dict.fromkeys(f"{game}: {name} was left out, since {why}." for game, name, why in reasons if why))


def _summarize(
    run: RunDir,
    contexts: list[Context],
    failures: list[Failure],
    path: Path,
    only: str | None,
    notes: Sequence[str] = (),
) -> Summary:
    folder = path if path.is_dir() else path.parent
    results = read_run(run.path)
    shown = {(ctx.game, ctx.seed_dir.seed) for ctx in contexts}
    results = replace(results, seeds=[seed for seed in results.seeds if (seed.game, seed.seed) in shown])
    summary = summarize(results, failures, folder, only)
    summary.notes.extend(notes)
    summary.files.extend(write_images(results, folder))
    summary.files.append(run.path / REPORT)
    summary.write()
    write_report(run.path)  # Last, because it reads the summary.
    return summary
