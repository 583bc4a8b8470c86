"""What every stage is given."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from lapo_cli.core.compute import Compute
from lapo_cli.core.config import Config
from lapo_cli.core.data.store import FrameStore, Split, open_store
from lapo_cli.core.envs.base import ENVIRONMENTS, EnvSpec
from lapo_cli.core.errors import UsageError
from lapo_cli.core.progress import Progress, Silent
from lapo_cli.core.run_dir import SeedDir


@dataclass(frozen=True)
class Context:
    """Where a stage works, with which numbers, on what, and where it reports.

    Attributes:
        seed_dir: game, seed and folder.
        config: the resolved configuration.
        compute: device and precision.
        data_dir: root of the frame stores.
        progress: where progress is reported.
        fresh: start the stage over instead of resuming it.
        wandb: log metrics to Weights & Biases too.
        variant: how the names of the stages end whose networks are used; empty for those of the run's configuration.
    """

    seed_dir: SeedDir
    config: Config
    compute: Compute
    data_dir: Path
    progress: Progress = field(default_factory=Silent)
    fresh: bool = False
    wandb: bool = False
    variant: str = ""

    @property
    def game(self) -> str:
        """Name of the environment or data set."""
        return self.seed_dir.game

    @cached_property
    def env(self) -> EnvSpec:
        """The registered environment of that name or, for data without one, what the training store records.

        Raises:
            MissingInputError, CorruptDataError: there is neither an environment nor a store of that name.
        """
        if self.game in ENVIRONMENTS:
            return ENVIRONMENTS.get(self.game)
        return EnvSpec(self.game, open_store(self.data_dir, self.game, "train").manifest.num_actions)

    def open_store(self, split: Split) -> FrameStore:
        """The store of a split.

        Raises:
            MissingInputError, CorruptDataError: it is not there, or damaged.
            UsageError: its actions are not those of the environment, or it has no window of three frames.
        """
        store = open_store(self.data_dir, self.game, split)
        there, here = store.manifest.num_actions, self.env.num_actions
        if there is not None and here is not None and there != here:
            raise UsageError(
                f"The {split} frames of {self.game} in {self.data_dir} have {there} actions, but the environment has "
                f"{here}: import them under another name."
            )
        if len(store.video().windows()) == 0:
            raise UsageError(
                f"The {split} frames of {self.game} in {self.data_dir} contain no episode of three frames, the least "
                "that training needs: import longer episodes."
            )
        return store

    def with_precision(self, precision: str) -> "Context":
        """This context, computing in ``bf16`` or ``fp32``."""
        return replace(self, compute=replace(self.compute, bf16=precision == "bf16"))

    def title(self, text: str) -> str:
        """``text`` with game and seed before it, as progress shows it."""
        return f"{self.game}/{self.seed_dir.seed}{self.variant} {text}"
