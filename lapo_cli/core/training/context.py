"""What every stage is given."""

from dataclasses import dataclass, field
from pathlib import Path

from lapo_cli.core.compute import Compute
from lapo_cli.core.config import Config
from lapo_cli.core.progress import Progress, Silent
from lapo_cli.core.run_dir import SeedDir


@dataclass(frozen=True)
class Context:
    """Where a stage works, with which numbers, on what, and whom it tells.

    Attributes:
        seed_dir: game, seed and folder.
        config: the resolved configuration.
        compute: device and precision.
        data_dir: root of the frame stores.
        progress: where progress is reported.
        fresh: start the stage over instead of resuming it.
        wandb: log metrics to Weights & Biases too.
    """

    seed_dir: SeedDir
    config: Config
    compute: Compute
    data_dir: Path
    progress: Progress = field(default_factory=Silent)
    fresh: bool = False
    wandb: bool = False

    def title(self, text: str) -> str:
        """``text`` with game and seed before it, as progress is told."""
        return f"{self.seed_dir.game}/{self.seed_dir.seed} {text}"
