"""A chain: all stages of one game and seed, from data to evaluated policies, which is what launchers run."""

import os
import platform
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from lapo_cli.core import distributed, files
from lapo_cli.core.compute import Compute, resolve
from lapo_cli.core.config import Config
from lapo_cli.core.data.download import copy_stores, ensure_stores
from lapo_cli.core.data.store import store_path
from lapo_cli.core.errors import DeviceError, LapoError, UsageError, describe, one_line
from lapo_cli.core.evaluation.evaluate import candidates, episodic_returns
from lapo_cli.core.evaluation.measurements import measure
from lapo_cli.core.launchers.base import Needs, run_command
from lapo_cli.core.needs import needs
from lapo_cli.core.plugins import loaded_plugins
from lapo_cli.core.progress import Progress
from lapo_cli.core.run_dir import RunDir, SeedDir
from lapo_cli.core.training import stage as stages
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.metrics import require_wandb
from lapo_cli.core.training.stage import STAGES, Stage, StageResult
from lapo_cli.core.workers import side_by_side


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:n``.
        data_dir: root of the frame stores.
        fresh: start stages over instead of resuming or skipping them.
        wandb: log to Weights & Biases too.
        jobs: games and seeds side by side; None for what suits the launcher.
        side_by_side: on a CPU, run the stages of a game and seed that do not need one another in processes of their
            own, one for each thread. These know built-in stages and those of plugins, and no others.
        launcher: what runs them, by its name in :data:`LAUNCHERS`.
        launcher_settings: its settings, as ``KEY=VALUE`` words.
        scratch: a folder on a disk of the machine that computes, to which stores are copied; None for none.
        baselines: include the ceilings and related methods in ``run-all``.
        devices: how many devices of a machine train the models of stages 1 and 2 together.
    """

    device: str = "auto"
    data_dir: Path = field(default_factory=files.data_dir)
    fresh: bool = False
    wandb: bool = False
    jobs: int | None = None
    side_by_side: bool = False
    launcher: str = "local"
    launcher_settings: tuple[str, ...] = ()
    scratch: Path | None = None
    baselines: bool = False
    devices: int = 1


def compute_of(run: RunDir, options: Options) -> Compute:
    """What computes.

    Raises:
        UsageError: an option asks for what is not here.
    """
    if options.wandb:
        require_wandb()
    return resolve(options.device, run.config.precision)


def context_of(run: RunDir, seed_dir: SeedDir, options: Options, progress: Progress) -> Context:
    """What the stages of this game and seed are given; see :func:`compute_of` for what it raises."""
    compute = compute_of(run, options)
    return Context(seed_dir, run.config, compute, options.data_dir, progress, options.fresh, options.wandb)


def chain(config: Config, *, baselines: bool = False) -> list[Stage]:
    """The stages of ``run-all`` for one game and seed, in order, with those that they need.

    Raises:
        UnknownNameError: the configuration names a stage that is not there.
    """
    extra = [STAGES.get(name) for name in config.extra_stages]
    included = ("always", "baselines") if baselines else ("always",)
    wanted = [stage for stage in STAGES.values() if stage.in_chain in included or stage in extra]
    for stage in wanted:  # What is added may need others in its turn.
        wanted += [needed for needed in map(STAGES.get, stage.requires) if needed not in wanted]
    return [stage for stage in STAGES.values() if stage in wanted]


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
        words += [] if options.side_by_side else ["--serial"]
        words += ["--wandb"] * options.wandb + ["--baselines"] * options.baselines
        words += [word for plugin in loaded_plugins() for word in ("--plugin", plugin)]
        words += [word for override in self.run.overrides() for word in ("--set", override)]
        return [str(word) for word in words]

    def needs(self, threads: int) -> Needs:
        """See :meth:`Job.needs`."""
        config, options = self.run.config, self.options
        stores = (not store_path(options.data_dir, self.game, "train").exists()) + (options.scratch is not None)
        stages = chain(config, baselines=options.baselines)
        side_by_side = options.side_by_side and self.devices == 1
        workers = max(1, min(threads, len(last_stages(stages)))) if side_by_side else 1
        return needs(config, stages, stores=stores, devices=self.devices, workers=workers)

    def __call__(self, device: str, progress: Progress) -> None:
        """Everything from data to evaluated policies."""
        if self.devices == 1:
            self.run_stages(device, progress)
        else:
            self._run_command(device, progress)

    def run_stages(self, device: str, progress: Progress) -> list[StageResult]:
        """Do everything and return how each stage ended; to be called by all processes that torchrun started.

        A second process with the same chain waits: it may be another attempt, begun while the first is still writing
        its checkpoint.

        Raises:
            UsageError: an option asks for what is not here.
        """
        options = replace(self.options, device=device)
        if options.scratch is not None and not distributed.is_one_machine():
            raise UsageError("--scratch is for the processes of one machine: leave it out under torchrun on several.")
        ctx = context_of(self.run, self.run.seed_dir(self.game, self.seed), options, progress)
        workers = self._workers(ctx)
        # Before the lock, which makes the folder of the game: without data there is to be none.
        distributed.on_main(lambda: self._get_data(workers, progress))
        if options.scratch is not None:
            ctx = replace(ctx, data_dir=options.scratch)
        results: dict[str, StageResult] = {}
        with ExitStack() as stack:
            distributed.on_main(partial(stack.enter_context, ctx.seed_dir.lock(progress)))
            included = []
            for stage in chain(self.run.config, baselines=options.baselines):
                reason = distributed.on_main(partial(stage.applicable, ctx))
                if reason is None:
                    included.append(stage)
                else:
                    progress.log(f"{self.game}, seed {self.seed}: {stage.name} is left out, since {reason}.")
            waiting: list[Stage] = []
            for stage in included:
                again = any(earlier.name in stage.requires for earlier in waiting)
                if workers > 1 and (again or not _is_finished(ctx, stage)):
                    waiting.append(stage)
                    continue
                work = partial(stages.run_stage, ctx, stage)
                results[stage.name] = work() if stage.parallel else distributed.on_main(work)
                if results[stage.name].skipped:
                    progress.log(f"{self.game}, seed {self.seed}: {stage.name} was finished before.")
            results |= self._run_side_by_side(ctx, waiting, included, workers)
            distributed.on_main(lambda: _evaluate(ctx))
        return [results[stage.name] for stage in included]

    def _workers(self, ctx: Context) -> int:
        """How many processes may share the stages.

        On a CPU one for each thread: a second thread saves a training of small networks a fifth of its time at most.
        """
        alone = not self.options.side_by_side or ctx.compute.is_cuda or distributed.world_size() > 1
        return 1 if alone else torch.get_num_threads()

    def _run_side_by_side(
        self, ctx: Context, waiting: list[Stage], included: list[Stage], workers: int
    ) -> dict[str, StageResult]:
        """Run stages in processes of their own, each as soon as those that it needs are done, and evaluate them there.

        A stage has its share of the threads whether or not those that may run beside it do so, or are finished already.

        Raises:
            Exception: what the first of those in ``waiting`` failed with that did; those that do not need it are
                finished by then.
        """
        if not waiting:
            return {}
        of = replace(self, options=replace(self.options, data_dir=ctx.data_dir))
        works = [StageWork(of, stage.name) for stage in _longest_first(waiting, self.run.config)]
        shares = thread_shares(included, workers)
        devices, errors = [str(ctx.compute.device)] * workers, {}
        for work, error in side_by_side(works, devices, ctx.progress, StageWork.after, lambda work: shares[work.stage]):
            if error is not None:
                errors[work.stage] = error
                ctx.progress.log(f"{work.title} stopped: {what_stopped(error)}")
        for stage in waiting:
            if stage.name in errors:
                raise errors[stage.name]
        return {stage.name: replace(stages.run_stage(ctx, stage), skipped=False) for stage in waiting}

    def _get_data(self, workers: int, progress: Progress) -> None:
        options, data = self.options, self.run.config.data
        progress.log(f"{self.title} needs {self.needs(workers)}.")
        ensure_stores(self.game, options.data_dir, data.source, data.max_frames, progress)
        if options.scratch is not None:
            copy_stores(self.game, options.data_dir, options.scratch, progress)

    def _run_command(self, device: str, progress: Progress) -> None:
        """Run :attr:`command`, whose processes take this GPU and those after it, and divide this process's threads.

        Raises:
            DeviceError: there are not as many GPUs.
            LapoError: it failed.
        """
        environment, first = dict(os.environ), device.removeprefix("cuda:")
        environment["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // self.devices))
        if first.isdigit():
            count = torch.cuda.device_count()
            if count < self.devices:
                raise DeviceError(f"--devices {self.devices} needs as many GPUs, and {count} are here: use fewer.")
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
            taken = [visible[(int(first) + number) % count] for number in range(self.devices)]
            environment["CUDA_VISIBLE_DEVICES"], device = ",".join(taken), "cuda"
        words = replace(self, options=replace(self.options, device=device)).command
        # A file for each attempt: another one may still be writing.
        log = self.folder / "devices" / f"{self.game}-{self.seed}-{platform.node()}-{os.getpid()}.log"
        progress.log(f"{self.title} is trained by {self.devices} processes, whose progress is in {log}.")
        run_command(words, environment, log)


@dataclass(frozen=True)
class StageWork:
    """A stage of a chain and the evaluation of its policies, as work for a process.

    The process that starts it holds the lock of the game and seed.
    """

    chain: Chain
    stage: str

    @property
    def title(self) -> str:
        """Game, seed and stage."""
        return f"{self.chain.title} {self.stage}"

    def after(self) -> list[str]:
        """Titles of the work that it needs."""
        return [f"{self.chain.title} {name}" for name in STAGES.get(self.stage).requires]

    def __call__(self, device: str, progress: Progress) -> None:
        """See :class:`Work`."""
        of = self.chain
        ctx = context_of(of.run, of.run.seed_dir(of.game, of.seed), replace(of.options, device=device), progress)
        with ctx.seed_dir.lock_worker(self.stage):
            stages.run_stage(ctx, STAGES.get(self.stage))
            for candidate in candidates(ctx, self.stage):
                if candidate.stage == self.stage:
                    episodic_returns(ctx, candidate)


def last_stages(included: list[Stage]) -> list[Stage]:
    """The stages that no other one needs: at the end of a chain so many can be run at a time."""
    needed = {name for stage in included for name in stage.requires}
    return [stage for stage in included if stage.name not in needed]


def thread_shares(included: list[Stage], threads: int) -> dict[str, int]:
    """Name -> equal share of the threads of all stages that may run at the same time, at least one.

    Those are all that neither need it nor are needed by it, so that stages that do run together never have more.
    """
    needed = {stage.name: {stage.name} | _needed(stage) for stage in included}

    def at_a_time(name: str) -> int:
        return 1 + sum(name not in needed[other] and other not in needed[name] for other in needed)

    return {name: max(1, threads // at_a_time(name)) for name in needed}


def _needed(stage: Stage) -> set[str]:
    """Names of the stages that it needs, and that these need."""
    return set(stage.requires).union(*(_needed(STAGES.get(name)) for name in stage.requires))


def _longest_first(included: list[Stage], config: Config) -> list[Stage]:
    """What other stages need, in its order, then the rest, so that no long one runs alone at the end."""
    last = last_stages(included)
    needed = [stage for stage in included if stage not in last]
    return needed + sorted(last, key=lambda stage: stage.trainings(config), reverse=True)


def what_stopped(error: Exception) -> str:
    """An error of a stage in one line, whatever it is."""
    if isinstance(error, OSError):
        error = files.as_lapo_error(error) or error
    if isinstance(error, LapoError):
        return one_line(str(error))
    return f"{describe(error)}. The stage alone, with --debug, shows the traceback."


def _is_finished(ctx: Context, stage: Stage) -> bool:
    try:
        return stages.is_finished(ctx, stage)
    except LapoError:  # Of a missing input, for example, which the stage reports.
        return False


def _evaluate(ctx: Context) -> None:
    """Play every policy of a game and seed, and measure its latent actions; what has been kept is not made again."""
    for candidate in candidates(ctx):
        episodic_returns(ctx, candidate)
    measure(ctx)
