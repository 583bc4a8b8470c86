"""One person in the world model: where they are, what they can do, and the way they came."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lapo_cli.core.data.batches import FrameLoader
from lapo_cli.core.errors import CorruptDataError
from lapo_cli.core.evaluation import sheets
from lapo_cli.core.evaluation.imagination import Imagination, pixels
from lapo_cli.core.evaluation.measurements import measure
from lapo_cli.core.models.frames import normalize
from lapo_cli.core.report.panels import cluster_names
from lapo_cli.core.report.results import read_run, trusted_steps
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.stage import stage_seed


class Session:
    """Play from real frames of the held-out data, by the most typical latent action of each cluster.

    Attributes:
        names: of the clusters, after the true action that they most often mean where labels exist.
        trusted: steps for which a rollout is closer to what happens than repeating its first frame.
        size: pixels per side of a frame.

    Raises:
        MissingInputError, CorruptDataError: stage 1 or the test frames are not there, or damaged.
    """

    def __init__(self, ctx: Context) -> None:
        self._world = Imagination(ctx)
        store = ctx.open_store("test")
        measure(ctx)
        of_game = read_run(ctx.seed_dir.run_path).of(ctx.game)
        seed = next((seed for seed in of_game if seed.seed == ctx.seed_dir.seed and seed.latents is not None), None)
        if seed is None:
            raise CorruptDataError(f"The measurements in {ctx.seed_dir.path} are damaged: run 'lapo evaluate' again.")
        self.names = cluster_names(seed)
        self.trusted = 0 if seed.imagined is None else trusted_steps(seed.imagined["errors"])
        self.size = self._world.idm.size
        self._latents = self._world.of_clusters()
        self._starts = np.random.default_rng(stage_seed(ctx, "play")).permutation(store.video().windows())
        self._loader = FrameLoader(store.video(), ctx.compute.device, resident=False)
        self._number = -1
        self._frames: list[Tensor] = []
        self.restart()

    @property
    def steps(self) -> int:
        """Steps since the last real frame."""
        return len(self._frames) - 2

    @property
    def picture(self) -> bytes:
        """The present frame, a lossless WebP."""
        cells: NDArray[np.uint8] = pixels(self._frames[-1])
        return sheets.encode(cells)

    def restart(self) -> None:
        """Go to the next real frame."""
        self._number = (self._number + 1) % len(self._starts)
        start = self._starts[self._number : self._number + 1]
        real = normalize(self._loader.gather(start, (-1, 0)), self.size)
        self._frames = [real[:, 0], real[:, 1]]

    def act(self, cluster: int) -> None:
        """Take the latent action of a cluster; one that does not exist changes nothing."""
        if 0 <= cluster < len(self._latents):
            self._frames.append(
                self._world.step(self._frames[-2], self._frames[-1], self._latents[cluster : cluster + 1])
            )

    def back(self) -> None:
        """Take the last step back, if there is one."""
        if self.steps > 0:
            self._frames.pop()
