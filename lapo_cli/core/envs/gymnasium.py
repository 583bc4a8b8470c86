"""Environments of Gymnasium with image observations and discrete actions: ``gymnasium:ALE/Breakout-v5`` and the like.

Atari and MiniGrid are registered with Gymnasium here, packages of one's own as it does itself: ``gymnasium:module:Id``.
Frames larger than 64 x 64 are reduced to that by area; of MiniGrid the whole grid is shown, with black around it.

Every episode begins from a seed that follows from the environments' seed, their number and that of the episode. A state
is the number of the episode and its actions so far, which are played again, and the frame that they must lead to; or,
of Atari, where beginning from a seed takes long, the state of the emulator.
"""

import base64
import importlib.metadata
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lapo_cli.core.envs.base import ENVIRONMENTS, MOST_ACTIONS, EnvSpec, VecEnv
from lapo_cli.core.errors import BrokenEnvironmentError, EnvironmentUnavailableError, UnknownNameError, one_line
from lapo_cli.core.extras import require_extra
from lapo_cli.core.registry import plain_name

_FAMILY = "gymnasium"
_SIZE = 64
_SMALLEST = 16
_EXTRAS = {"ALE/": ("ale_py", "atari"), "MiniGrid-": ("minigrid", "minigrid"), "BabyAI-": ("minigrid", "minigrid")}

Frame = NDArray[np.uint8]


def _make(env_id: str) -> Any:
    """An environment of Gymnasium.

    Raises:
        UsageError: an extra is not installed.
        UnknownNameError: there is no such environment.
        EnvironmentUnavailableError: it cannot be made here.
    """
    module, extra = next((of for prefix, of in _EXTRAS.items() if env_id.startswith(prefix)), ("", "gymnasium"))
    gymnasium = require_extra("gymnasium", extra, f"The environment {env_id}")
    if module:
        package = require_extra(module, extra, f"The environment {env_id}")
        gymnasium.register_envs(package)
        if module == "ale_py":
            package.ALEInterface.setLoggerMode(package.LoggerMode.Error)
    try:
        return gymnasium.make(env_id, disable_env_checker=True)
    except (gymnasium.error.UnregisteredEnv, ModuleNotFoundError) as error:
        raise UnknownNameError(
            f"Gymnasium has no environment {env_id} ({one_line(str(error), 200)}): check the spelling, or install its "
            "package and give gymnasium:PACKAGE:ID."
        ) from error
    except Exception as error:  # Whatever a package of somebody else raises.
        raise EnvironmentUnavailableError(
            f"The environment {env_id} cannot be made here ({one_line(str(error), 200)}): install what it needs."
        ) from error


def _frames_of(env_id: str, env: Any) -> tuple[Any, Callable[[Any], Frame]]:
    """The environment, wrapped where that is necessary, and what makes a frame of an observation.

    Raises:
        EnvironmentUnavailableError: its observations are no images.
    """
    spaces = require_extra("gymnasium.spaces", "gymnasium", f"The environment {env_id}")
    if env_id.startswith(("MiniGrid-", "BabyAI-")):
        wrappers = require_extra("minigrid.wrappers", "minigrid", f"The environment {env_id}")
        tile = max(1, _SIZE // max(env.unwrapped.width, env.unwrapped.height))
        return wrappers.RGBImgObsWrapper(env, tile_size=tile), lambda observation: _fitted(observation["image"])
    space = env.observation_space
    if isinstance(space, spaces.Dict):
        images = [key for key, part in space.spaces.items() if _is_image(spaces, part)]
        if len(images) == 1:
            return env, lambda observation: _fitted(observation[images[0]])
    elif _is_image(spaces, space):
        return env, _fitted
    raise EnvironmentUnavailableError(
        f"The observations of {env_id} are {one_line(str(space), 100)} and no images, from which lapo learns: register "
        "a variant with images, for example by gymnasium.wrappers.AddRenderObservation."
    )


def _is_image(spaces: Any, space: Any) -> bool:
    """Whether these are bytes (H, W), (H, W, 1) or (H, W, 3), at least 16 x 16."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) not in (2, 3):
        return False
    return min(space.shape[:2]) >= _SMALLEST and (*space.shape, 1)[2] in (1, 3)


def _fitted(image: Frame) -> Frame:
    """An image as 64 x 64 x 3: larger ones are reduced, smaller ones get a black edge unless they are half as large."""
    height, width = image.shape[:2]
    colours: Frame = np.broadcast_to(image.reshape(height, width, -1), (height, width, 3))
    if max(height, width) > _SIZE:
        reduced = Image.fromarray(np.ascontiguousarray(colours)).resize((_SIZE, _SIZE), Image.Resampling.BOX)
        return np.asarray(reduced)
    if min(height, width) <= _SIZE // 2:
        return colours
    padded = np.zeros((_SIZE, _SIZE, 3), np.uint8)
    top, left = (_SIZE - height) // 2, (_SIZE - width) // 2
    padded[top : top + height, left : left + width] = colours
    return padded


def _actions_of(env_id: str, env: Any) -> tuple[int, int]:
    """How many actions there are, and the number of the first.

    Raises:
        EnvironmentUnavailableError: they are not discrete, or too many.
    """
    spaces = require_extra("gymnasium.spaces", "gymnasium", f"The environment {env_id}")
    space = env.action_space
    if isinstance(space, spaces.Discrete) and space.n <= MOST_ACTIONS:
        return int(space.n), int(space.start)
    raise EnvironmentUnavailableError(
        f"The actions of {env_id} are {one_line(str(space), 100)}, and lapo needs at most {MOST_ACTIONS} discrete "
        "ones: register a variant that maps numbers to some of them, for example by gymnasium.wrappers.TransformAction."
    )


class _Game(ABC):
    """One environment, and its latest frame.

    Args:
        env_id: its id.
        seeds: what the seeds of its episodes follow from, together with their numbers.
    """

    def __init__(self, env_id: str, seeds: tuple[int, int]) -> None:
        env = _make(env_id)
        self._env_id = env_id
        _, self._first_action = _actions_of(env_id, env)
        self.env, self._frame_of = _frames_of(env_id, env)
        self._seeds, self._episode = seeds, -1
        self.reward, self.first = 0.0, True
        self.begin()

    @property
    def seed(self) -> int:
        """Of the episode."""
        return int(np.random.SeedSequence([*self._seeds, self._episode]).generate_state(1)[0]) >> 1

    def begin(self) -> None:
        """The next episode."""
        self._episode += 1
        self.frame = self._frame_of(self._reset())

    def act(self, action: int) -> None:
        """One step; where it ends the episode, the next one begins."""
        observation, reward, terminated, truncated, _ = self.env.step(action + self._first_action)
        self.reward, self.first = float(reward), bool(terminated or truncated)
        if self.first:
            self.begin()
        else:
            self.frame = self._frame_of(observation)
            self._note(action)

    def state(self) -> bytes:
        """All of this, and what :meth:`_inner_state` says, as JSON."""
        content = {
            "seeds": self._seeds,
            "episode": self._episode,
            "reward": self.reward,
            "first": self.first,
            "shape": self.frame.shape,
            "frame": base64.b64encode(self.frame.tobytes()).decode(),
            "inner": base64.b64encode(self._inner_state()).decode(),
        }
        return json.dumps(content).encode()

    def restore(self, state: bytes) -> None:
        """Take back what :meth:`state` gave.

        Raises:
            BrokenEnvironmentError: the environment does not come to the same frame.
        """
        content = json.loads(state)
        self._seeds, self._episode = tuple(content["seeds"]), content["episode"]
        self.reward, self.first = content["reward"], content["first"]
        self.frame = np.frombuffer(base64.b64decode(content["frame"]), np.uint8).reshape(content["shape"])
        self._restore_inner(base64.b64decode(content["inner"]))

    @abstractmethod
    def _reset(self) -> Any:
        """Begin an episode; the first observation."""

    def _note(self, action: int) -> None:  # noqa: B027  # Only games that are played again need to know.
        """An action was taken that did not end the episode."""

    @abstractmethod
    def _inner_state(self) -> bytes: ...

    @abstractmethod
    def _restore_inner(self, state: bytes) -> None: ...


class _PlayedAgain(_Game):
    """A game whose state is the actions of its episode."""

    def _reset(self) -> Any:
        self._actions = bytearray()
        return self.env.reset(seed=self.seed)[0]

    def _note(self, action: int) -> None:
        self._actions.append(action)

    def _inner_state(self) -> bytes:
        return bytes(self._actions)

    def _restore_inner(self, state: bytes) -> None:
        observation = self._reset()
        for action in state:
            observation = self.env.step(action + self._first_action)[0]
            self._note(action)
        if not np.array_equal(self._frame_of(observation), self.frame):
            raise BrokenEnvironmentError(
                f"{self._env_id} does not give the same frames for the same seed and actions, so that what was begun "
                "in it cannot be continued: start over with --fresh."
            )


class _Atari(_Game):
    """A game of the Arcade Learning Environment, whose emulator knows its state."""

    def _reset(self) -> Any:
        # A seed makes it load the game again, which takes longer than a short episode.
        return self.env.reset(seed=self.seed if self._episode == 0 else None)[0]

    def _inner_state(self) -> bytes:
        state: bytes = self.env.unwrapped.clone_state(include_rng=True).serialize()
        return state

    def _restore_inner(self, state: bytes) -> None:
        ale_py = require_extra("ale_py", "atari", f"The environment {self._env_id}")
        self.env.unwrapped.restore_state(ale_py.ALEState(state))


def _game_class(env: Any) -> type[_Game]:
    # A wrapper that counts steps has a state that the emulator does not know.
    return _Atari if hasattr(env.unwrapped, "ale") and env.spec.max_episode_steps is None else _PlayedAgain


class GymnasiumVecEnv(VecEnv):
    """Environments of one id, stepped one after the other in this process.

    Args:
        env_id: of Gymnasium.
        game: the class of each.
        nondeterministic: whether the environment says that a seed does not determine it.
        num_envs: N.
        seed: of the episodes.
    """

    def __init__(self, env_id: str, game: type[_Game], nondeterministic: bool, num_envs: int, seed: int) -> None:
        self.num_envs, self.saves_state = num_envs, not nondeterministic
        self.version = ", ".join(f"{name} {version}" for name, version in _versions(env_id))
        self._numbered = game is _PlayedAgain
        self._games = [game(env_id, (seed, number)) for number in range(num_envs)]

    def observe(self) -> tuple[NDArray[np.float32], Frame, NDArray[np.bool_]]:
        """See :meth:`VecEnv.observe`."""
        rewards = np.array([game.reward for game in self._games], np.float32)
        return rewards, np.stack([game.frame for game in self._games]), np.array([game.first for game in self._games])

    def act(self, actions: NDArray[np.integer[Any]]) -> None:
        """See :meth:`VecEnv.act`."""
        for game, action in zip(self._games, actions.tolist(), strict=True):
            game.act(action)

    def level_seeds(self) -> NDArray[np.int64] | None:
        """The seeds of the episodes; None for Atari, which goes on with its own random numbers."""
        return np.array([game.seed for game in self._games], np.int64) if self._numbered else None

    def get_state(self) -> list[bytes]:
        """See :meth:`VecEnv.get_state`."""
        return [game.state() for game in self._games]

    def set_state(self, states: list[bytes]) -> None:
        """See :meth:`VecEnv.set_state`."""
        for game, state in zip(self._games, states, strict=True):
            game.restore(state)

    def close(self) -> None:
        """Free the environments."""
        for game in self._games:
            game.env.close()


def _versions(env_id: str) -> list[tuple[str, str]]:
    names = ["gymnasium", *(module for prefix, (module, _) in _EXTRAS.items() if env_id.startswith(prefix))]
    return [(name, importlib.metadata.version(name)) for name in names]


def _spec(env_id: str) -> EnvSpec:
    """The description of an environment, which is made once for that.

    Raises:
        LapoError: it cannot be made, or lapo cannot use it.
    """
    env = _make(env_id)
    try:
        num_actions, _ = _actions_of(env_id, env)
        _frames_of(env_id, env)
        meanings = getattr(env.unwrapped, "get_action_meanings", None)
        named = getattr(env.unwrapped, "actions", ())
        names = meanings() if meanings else [action.name for action in named if hasattr(action, "name")]
        make = partial(GymnasiumVecEnv, env_id, _game_class(env), bool(env.spec.nondeterministic))
    finally:
        env.close()
    return EnvSpec(
        name=plain_name(f"{_FAMILY}:{env_id}"),
        num_actions=num_actions,
        action_names=tuple(names) if len(names) == num_actions else (),
        make=make,
    )


ENVIRONMENTS.register_family(_FAMILY, _spec)
