"""``run-all`` and its parts: which stages there are, in which order, and over which games and seeds.

A stage run by hand and by :func:`run_all` is the same call; all that passes between stages is files.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from lapo_cli.core import distributed, files
from lapo_cli.core.compute import Compute, resolve
from lapo_cli.core.config import Config, Section, section_of
from lapo_cli.core.config_loading import parse_settings
from lapo_cli.core.data.clips import Preparation, find_clips
from lapo_cli.core.data.download import copy_stores, ensure_stores
from lapo_cli.core.data.sources.base import SOURCES
from lapo_cli.core.data.sources.video import preparation_of
from lapo_cli.core.data.store import store_path
from lapo_cli.core.errors import (
    EnvironmentUnavailableError,
    LapoError,
    MissingInputError,
    UsageError,
    describe,
    one_line,
)
from lapo_cli.core.evaluation.evaluate import FOLDER as EVALUATION
from lapo_cli.core.evaluation.evaluate import candidates, compare, episodic_returns
from lapo_cli.core.evaluation.measurements import FOLDER as MEASUREMENTS
from lapo_cli.core.evaluation.measurements import measure
from lapo_cli.core.evaluation.reference import with_references
from lapo_cli.core.evaluation.summary import Failure, Summary
from lapo_cli.core.labelling import Labelled, label_clip
from lapo_cli.core.launchers.base import LAUNCHERS, Launcher, Needs, run_command
from lapo_cli.core.needs import needs
from lapo_cli.core.play.server import Server
from lapo_cli.core.play.session import Session
from lapo_cli.core.plugins import loaded_plugins
from lapo_cli.core.progress import Progress, Silent
from lapo_cli.core.report.images import draw_learning_curve, write_images
from lapo_cli.core.report.page import REPORT, write_report
from lapo_cli.core.report.results import read_run
from lapo_cli.core.run_dir import RunDir, SeedDir
from lapo_cli.core.training import stage as stages
from lapo_cli.core.training.checkpoints import IDM
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
        jobs: games and seeds side by side; None for what suits the launcher.
        launcher: what runs them, by its name in :data:`LAUNCHERS`.
        launcher_settings: its settings, as ``KEY=VALUE`` words.
        scratch: a folder on a disk of the machine that computes, to which stores are copied; None for none.
        baselines: include the ceilings and peer methods in ``run-all``.
        devices: of a chain's machine that train its models of stages 1 and 2 together.
    """

    device: str = "auto"
    data_dir: Path = field(default_factory=files.data_dir)
    fresh: bool = False
    wandb: bool = False
    jobs: int | None = None
    launcher: str = "local"
    launcher_settings: tuple[str, ...] = ()
    scratch: Path | None = None
    baselines: bool = False
    devices: int = 1


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


def chain(config: Config, *, baselines: bool = False) -> list[Stage]:
    """The stages of ``run-all`` for one game and seed, in order.

    Raises:
        UnknownNameError: the configuration names a stage that is not there.
    """
    extra = [STAGES.get(name) for name in config.extra_stages]
    included = ("always", "baselines") if baselines else ("always",)
    return [stage for stage in STAGES.values() if stage.in_chain in included or stage in extra]


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
    contexts = [_context(run, seed_dir, options, progress) for seed_dir in seed_dirs]
    for ctx in contexts:
        stages.stage_key(ctx, stage)
    return contexts


def _require_shares(config: Config, stage: Stage) -> None:
    """Raise a UsageError if the processes cannot share a stage's batches evenly."""
    sections = stage.configure(config).model_dump()
    for section in stage.sections:
        distributed.part(section_of(sections, section).get("batch_size", 0))


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
    """Evaluate every policy found at or below ``path`` (or the one ``path`` lies in) and measure its latent actions.

    The table is written at ``path``, the report into the run directory. What cannot act here is noted among the
    failures, and what has been kept of it stays in the report.

    Raises:
        MissingInputError: nothing there is finished.
    """
    contexts = [_context(run, seed_dir, options, progress) for seed_dir in run.seed_dirs(path)]
    only = _stage_of(path, contexts)
    names = [stage.name for stage in STAGES.values() if only in (None, stage.name)]
    if not any(ctx.seed_dir.stage(name).done() for ctx in contexts for name in names):
        raise MissingInputError(
            f"{path} holds no finished stage: run 'lapo train-idm GAME --run-dir {run.path}' or 'lapo train-expert "
            f"GAME --run-dir {run.path}' first."
        )
    failures, notes, played = [], [], []
    for ctx in contexts:
        reason = needs_environment(ctx)
        if reason is not None:
            notes.append(f"{ctx.game}: nothing can be evaluated, since {reason}.")
        with ctx.seed_dir.lock():
            try:
                for candidate in candidates(ctx, only):
                    episodic_returns(ctx, candidate)
                played.append(replace(ctx, fresh=False))
            except EnvironmentUnavailableError as error:
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
    contexts = [_context(run, seed_dir, options, progress) for seed_dir in run.seed_dirs(path)]
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
    _compute(run, options)
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
    finished = [_context(run, run.seed_dir(*names), options, progress) for names in done]
    with run.lock(progress):  # Evaluated already: the table is made from what the chains have kept.
        return _summarize(run, finished, failures, run.path, None, _left_out(finished, included))


def run_chain(run: RunDir, game: str, seed: int, options: Options, progress: Progress) -> list[StageResult]:
    """All of one game and seed, from data to evaluated policies, as :func:`run_all` does it; no table is made.

    By this process, or by all that torchrun started: they share the trainings that can be, and the main process does
    the rest while the others wait.

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
        distributed.on_all(lambda: _compute(run, options))
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
    """What :func:`run_all` would do, without doing it."""
    planned = []
    for game in games:
        for seed in seeds:
            again: set[str] = set()
            for stage in chain(run.config, baselines=options.baselines):
                folder = run.seed_dir(game, seed).stage(stage.name)
                begun = folder.try_read_config()
                config = stage.configure(run.config).model_dump(mode="json")
                changed = any(section_of(config, name) != value for name, value in begun.get("config", {}).items())
                if options.fresh or not begun or changed or again.intersection(stage.requires):
                    state = "run"
                    again.add(stage.name)
                else:
                    state = "resume" if folder.done() is None else "done"
                planned.append(PlannedStage(game, seed, stage.name, state))
    return planned


def _chains(run: RunDir, games: list[str], seeds: list[int], options: Options) -> "list[Chain]":
    """The jobs of a run, with absolute paths: they may be carried out in another working directory."""
    run = replace(run, path=run.path.absolute())
    scratch = None if options.scratch is None else options.scratch.absolute()
    options = replace(options, data_dir=options.data_dir.absolute(), scratch=scratch)
    return [Chain(run, game, seed, options) for game in games for seed in seeds]


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

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.run.path

    @property
    def devices(self) -> int:
        """See :class:`Job`."""
        return self.options.devices

    @property
    def command(self) -> list[str]:
        """``lapo run-chain``, by this interpreter, with all that the work depends on."""
        options = self.options
        words: list[str | Path] = [sys.executable, "-m", "lapo_cli", "run-chain", self.game, "--seed", str(self.seed)]
        words += ["--run-dir", self.folder, "--data-dir", options.data_dir, "--device", options.device]
        words += [] if options.scratch is None else ["--scratch", options.scratch]
        words += [] if self.devices == 1 else ["--devices", str(self.devices)]
        words += ["--wandb"] * options.wandb + ["--baselines"] * options.baselines
        words += [word for plugin in loaded_plugins() for word in ("--plugin", plugin)]
        words += [word for override in self.run.overrides() for word in ("--set", override)]
        return [str(word) for word in words]

    def needs(self) -> Needs:
        """See :meth:`Job.needs`."""
        made = not store_path(self.options.data_dir, self.game, "train").exists()
        return needs(self.run.config, stores=made + (self.options.scratch is not None))

    def __call__(self, device: str, progress: Progress) -> None:
        """Everything from data to evaluated policies."""
        if self.devices == 1:
            self.run_stages(device, progress)
        else:
            self._run_command(device, progress)

    def run_stages(self, device: str, progress: Progress) -> list[StageResult]:
        """The same, and how each stage ended; by all processes that torchrun started.

        A second process with the same chain waits: it may be another attempt, begun while the first is still writing
        its checkpoint.
        """
        options = replace(self.options, device=device)
        ctx = _context(self.run, self.run.seed_dir(self.game, self.seed), options, progress)
        # Before the lock, which makes the folder of the game: without data there is to be none.
        distributed.on_main(lambda: self._get_data(progress))
        if options.scratch is not None:
            ctx = replace(ctx, data_dir=options.scratch)
        results = []
        with ExitStack() as stack:
            distributed.on_main(partial(stack.enter_context, ctx.seed_dir.lock(progress)))
            for stage in chain(self.run.config, baselines=options.baselines):
                reason = distributed.on_main(partial(stage.applicable, ctx))
                if reason is not None:
                    progress.log(f"{self.game}, seed {self.seed}: {stage.name} is left out, since {reason}.")
                    continue
                work = partial(stages.run_stage, ctx, stage)
                results.append(work() if stage.parallel else distributed.on_main(work))
                if results[-1].skipped:
                    progress.log(f"{self.game}, seed {self.seed}: {stage.name} was finished before.")
            distributed.on_main(lambda: _evaluate(ctx))
        return results

    def _get_data(self, progress: Progress) -> None:
        options, data = self.options, self.run.config.data
        progress.log(f"{self.title} needs {self.needs()}.")
        ensure_stores(self.game, options.data_dir, data.source, data.max_frames, progress)
        if options.scratch is not None:
            copy_stores(self.game, options.data_dir, options.scratch, progress)

    def _run_command(self, device: str, progress: Progress) -> None:
        """Run :attr:`command`, whose processes take this GPU and those after it."""
        environment, first = dict(os.environ), device.removeprefix("cuda:")
        if first.isdigit():
            count = torch.cuda.device_count()
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
            taken = [visible[(int(first) + number) % count] for number in range(self.devices)]
            environment["CUDA_VISIBLE_DEVICES"], device = ",".join(taken), "cuda"
        words = replace(self, options=replace(self.options, device=device)).command
        log = self.folder / "devices" / f"{self.game}-{self.seed}.log"
        progress.log(f"{self.title} is trained by {self.devices} processes, whose progress is in {log}.")
        run_command(words, environment, log)


def _evaluate(ctx: Context) -> None:
    """Play every policy of a game and seed, and measure its latent actions; what has been kept is not made again."""
    for candidate in candidates(ctx):
        episodic_returns(ctx, candidate)
    measure(ctx)


def _failure(chain: Chain, error: Exception, progress: Progress) -> Failure:
    """Note what stopped one game and seed; whatever it was, the others continue."""
    if isinstance(error, OSError):
        error = files.as_lapo_error(error) or error
    message = one_line(str(error))
    if not isinstance(error, LapoError):
        message = f"{describe(error)}. The stage alone, with --debug, shows the traceback."
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
    summary = with_references(compare(contexts, failures, folder, only), run)
    summary.notes.extend(notes)
    results = read_run(run.path)
    shown = {(ctx.game, ctx.seed_dir.seed) for ctx in contexts}
    of_path = [seed for seed in results.seeds if (seed.game, seed.seed) in shown]
    summary.files.extend(write_images(replace(results, seeds=of_path), folder))
    summary.files.append(run.path / REPORT)
    summary.write()
    write_report(run.path)  # Last, because it reads the summary.
    return summary
