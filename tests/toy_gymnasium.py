"""Environments registered with Gymnasium, each with one property; ``gymnasium:tests.toy_gymnasium:Toy/NAME-v0``."""

import itertools
import random
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

_counted = itertools.count()


class Toy(gymnasium.Env[Any, Any]):
    """A grey picture that gets lighter by the action and by chance; an episode lasts 6 steps or a few more."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        shape = {"grey": (40, 40), "large": (210, 160, 3), "small": (20, 24, 3)}.get(fault, (64, 64, 3))
        self.observation_space: Any = spaces.Box(0, 255, shape, np.uint8)
        if fault == "vector":
            self.observation_space = spaces.Box(-1, 1, (4,), np.float32)
        if fault == "dict":
            self.observation_space = spaces.Dict({"camera": self.observation_space, "speed": spaces.Discrete(3)})
        self.action_space: Any = spaces.Discrete(3, start=5)
        if fault == "continuous":
            self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        if fault == "several":
            self.action_space = spaces.MultiDiscrete([3, 3])

    def _look(self) -> Any:
        space = self.observation_space["camera"] if self.fault == "dict" else self.observation_space
        picture = np.full(space.shape, self.level % 256, np.uint8)
        return {"camera": picture, "speed": 0} if self.fault == "dict" else picture

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=None if self.fault == "unrepeatable" else seed)
        self.level, self.age = int(self.np_random.integers(50)), 0
        self.longest = 6 + int(self.np_random.integers(5))
        return self._look(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(int(action))
        self.age += 1
        if self.fault == "crash" and self.age == 4:
            raise RuntimeError("the emulator died")
        self.level += int(action) + int(self.np_random.integers(3))
        reward = float(action)
        if self.fault == "unrepeatable-reward":
            reward = float(next(_counted))
        if self.fault == "unrepeatable-end":
            self.longest = random.SystemRandom().randint(6, 9)
        if self.fault == "unrepeatable-frame" and self.age == 5:
            self.level = next(_counted)
        return self._look(), reward, self.age == self.longest, self.age == 9, {}


_FAULTS = ("", "grey", "large", "small", "vector", "dict", "continuous", "several", "crash", "unrepeatable")
_FAULTS += ("unrepeatable-frame", "unrepeatable-reward", "unrepeatable-end")
for _fault in _FAULTS:
    gymnasium.register(f"Toy/{_fault or 'Plain'}-v0", Toy, kwargs={"fault": _fault})
gymnasium.register("Toy/chance-v0", Toy, nondeterministic=True)
