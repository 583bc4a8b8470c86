"""What an environment is: its description, and the vectorized environment that acts.

An environment is one file: a subclass of :class:`VecEnv` and ``ENVIRONMENTS.register(EnvSpec(...))``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from lapo_cli.core.errors import (
    BrokenEnvironmentError,
    EnvironmentUnavailableError,
    LapoError,
    PluginError,
    UnknownNameError,
    describe,
)
from lapo_cli.core.registry import Registry, plain_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


MOST_ACTIONS = 255
"""As a store keeps an action in a byte, of which one value means that it is not known."""


class VecEnv(ABC):
    """``num_envs`` environments stepped together, each of which starts its next episode by itself.

    The first frame of a new episode comes with the reward of the last action of the old one, in the same step.

    Attributes:
        num_envs: N.
        saves_state: whether :meth:`get_state` and :meth:`set_state` work, so that training resumes exactly.
        version: of what renders the frames, named where a replay log does not replay; None where it is not known.
    """

    num_envs: int
    saves_state = False
    version: str | None = None

    @abstractmethod
    def observe(self) -> "tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_]]":
        """What the last :meth:`act` led to.

        Returns:
            reward (N,) float32; frames (N, H, W, 3) uint8, valid until the next :meth:`act`; first (N,) bool, true
            where the frame is the first of an episode (the reward then belongs to the episode that ended).
        """

    @abstractmethod
    def act(self, actions: "NDArray[np.integer[Any]]") -> None:
        """Give every environment its action: (N,) integers in [0, num_actions)."""

    def level_seeds(self) -> "NDArray[np.int64] | None":
        """A number for the level every environment plays, (N,); None where levels have no number."""
        return None

    def get_state(self) -> list[bytes]:
        """The complete state of every environment, N byte strings."""
        raise NotImplementedError

    def set_state(self, states: list[bytes]) -> None:
        """Put back what :meth:`get_state` returned; play continues identically from there."""
        raise NotImplementedError

    @abstractmethod
    def close(self) -> None:
        """Free the environments."""


_Returns = TypeVar("_Returns", float, "NDArray[np.float64]")


def normalized(returns: _Returns, reference: tuple[float | None, float | None]) -> _Returns | None:
    """(return - random) / (expert - random), as in the paper's figures.

    Args:
        returns: one or more episodic returns.
        reference: mean returns of the random policy and of the expert; the result is None unless both are known and
            differ.
    """
    random, expert = reference
    return None if random is None or expert is None or expert == random else (returns - random) / (expert - random)


class Planner(Protocol):
    """Plays from saved states instead of frames."""

    def act(self, states: Sequence[bytes]) -> "NDArray[np.int64]":
        """Actions (N,) int64 for N saved states."""


@dataclass(frozen=True)
class EnvSpec:
    """An environment, or a data set that has none.

    Attributes:
        name: as the command line and the run directory call it.
        num_actions: how many discrete actions there are, at most 255; None for videos without actions.
        action_names: one per action, or none.
        random_return: mean episodic return of uniformly random actions, None where it is not known.
        expert_return: mean episodic return of an expert, None where it is not known.
        make: (num_envs, seed) -> environments; None for data without an environment. Equal seeds and actions must
            give equal frames for play to be recorded as a replay log.
        make_planner: (num_envs, seed) -> something that plays from saved states; None where there is nothing.

    Raises:
        PluginError: such a number of actions cannot be.
    """

    name: str
    num_actions: int | None
    action_names: tuple[str, ...] = ()
    random_return: float | None = None
    expert_return: float | None = None
    make: Callable[..., VecEnv] | None = None
    make_planner: Callable[[int, int], Planner] | None = None

    def __post_init__(self) -> None:
        if self.num_actions is not None and self.num_actions not in range(1, MOST_ACTIONS + 1):
            raise PluginError(
                f"The environment '{self.name}' says that it has {self.num_actions} actions: give it 1 to "
                f"{MOST_ACTIONS}, or None for frames without actions."
            )

    def normalize(self, episodic_return: float) -> float | None:
        """See :func:`normalized`."""
        return normalized(episodic_return, (self.random_return, self.expert_return))

    def make_envs(self, num_envs: int, seed: int, **options: Any) -> VecEnv:
        """``num_envs`` environments; ``options`` are those of :attr:`make`.

        Raises:
            EnvironmentUnavailableError: there is none for this data, or it cannot run here.
            BrokenEnvironmentError: (every method too) it fails, or does not give what :class:`VecEnv` says.
        """
        if self.make is None:
            raise EnvironmentUnavailableError(
                f"There is no environment for {self.name}, so nothing can act in it: register one with --plugin FILE, "
                "or use the stages that need frames alone."
            )
        return _Checked(self, num_envs, seed, options)

    def require_actions(self) -> int:
        """:attr:`num_actions`.

        Raises:
            EnvironmentUnavailableError: there are no actions.
        """
        if self.num_actions is None:
            raise EnvironmentUnavailableError(
                f"{self.name} has frames without actions: what needs true actions cannot run on it."
            )
        return self.num_actions


class _Checked(VecEnv):
    """Environments whose faults are reported as theirs: they may be those of a plugin."""

    def __init__(self, spec: EnvSpec, num_envs: int, seed: int, options: dict[str, Any]) -> None:
        assert spec.make is not None
        self._name = spec.name
        self._frame_shape: tuple[int, ...] | None = None
        with self._reported():
            self._envs = spec.make(num_envs, seed, **options)
            self.num_envs, self.saves_state, self.version = num_envs, self._envs.saves_state, self._envs.version

    def observe(self) -> "tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_]]":
        import numpy as np  # Here, because the command line knows the names of games before it loads anything slow.

        with self._reported():
            reward, frames, first = self._envs.observe()
            rows = (self.num_envs,)
            if self._frame_shape is None and len(frames.shape) == 4 and frames.size and frames.shape[3] == 3:
                self._frame_shape = frames.shape[1:]
            self._require("rewards", reward, "float32", rows)
            self._require("frames", frames, "uint8", (*rows, *(self._frame_shape or ("H", "W", 3))))
            self._require("first frames", first, "bool", rows)
            if not np.isfinite(reward).all():
                raise self._broken("returned a reward that is not finite from observe()")
        return reward, frames, first

    def _require(self, what: str, array: Any, dtype: str, shape: tuple[int | str, ...]) -> None:
        if array.dtype != dtype or array.shape != shape:
            wanted = str(shape).replace("'", "")
            found = f"{array.dtype} {str(array.shape)[:100]}"
            raise self._broken(f"returned {what} of {found} from observe() instead of {dtype} {wanted}")

    def act(self, actions: "NDArray[np.integer[Any]]") -> None:
        with self._reported():
            self._envs.act(actions)

    def level_seeds(self) -> "NDArray[np.int64] | None":
        with self._reported():
            return self._envs.level_seeds()

    def get_state(self) -> list[bytes]:
        with self._reported():
            return self._envs.get_state()

    def set_state(self, states: list[bytes]) -> None:
        with self._reported():
            self._envs.set_state(states)

    def close(self) -> None:
        with self._reported():
            self._envs.close()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except LapoError:
            raise
        except (Exception, SystemExit) as error:
            raise self._broken(f"failed ({describe(error)})") from error

    def _broken(self, how: str) -> BrokenEnvironmentError:
        return BrokenEnvironmentError(f"The environment '{self._name}' {how}: correct it; --debug shows the traceback.")


ENVIRONMENTS: Registry[EnvSpec] = Registry(
    "game",
    "lapo.environments",
    "lapo_cli.core.envs",
    more="what a plugin adds needs --plugin FILE, and data of your own 'lapo import NAME PATH' or 'lapo download NAME "
    "--from PATH' first",
)


def parse_games(names: Sequence[str], data_dir: Path | None = None) -> list[str]:
    """Names from command-line words: names, comma-separated lists of them, or ``all``; duplicates dropped.

    Args:
        names: the words.
        data_dir: names of folders in here are accepted too: data that has no environment.

    Raises:
        UnknownNameError: a word is no name, or there is none at all.
    """
    words = [plain_name(word.strip()) for name in names for word in name.split(",") if word.strip()]
    found: dict[str, None] = {}
    for word in words:
        if word == "all":
            found |= dict.fromkeys(ENVIRONMENTS.names())
        elif data_dir is not None and word not in (".", "..") and "/" not in word and (data_dir / word).is_dir():
            found[word] = None
        else:
            found[ENVIRONMENTS.get(word).name] = None
    if not found:
        raise UnknownNameError("No game was named: give one or more games, or 'all'.")
    return list(found)
