"""The sixteen Procgen games: names, actions, and the returns that normalize theirs (easy mode)."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from lapo_cli.core.errors import UnknownNameError


@dataclass(frozen=True)
class Game:
    """One environment of the paper.

    Attributes:
        name: Procgen's name of the game.
        random_return: mean episodic return of uniformly random actions.
        expert_return: mean episodic return of the paper's expert.
        drive_id: Google Drive id of the official demonstrations' zip file.
    """

    name: str
    random_return: float
    expert_return: float
    drive_id: str

    def normalize(self, episodic_return: float) -> float:
        """(return - random) / (expert - random), as in the paper's figures."""
        return (episodic_return - self.random_return) / (self.expert_return - self.random_return)


GAMES: dict[str, Game] = {
    game.name: game
    for game in (
        Game("bigfish", 0.874, 36.336, "10xwWejz1ZwccxV7O4fqbDTP_260OsBU5"),
        Game("bossfight", 0.046, 11.634, "11x3-8eh0M4KsnDYW3pVRHjlOIGVCeuMz"),
        Game("caveflyer", 2.597, 9.184, "1YdSG3Y3Tyf-UnL4I-ZXGGlJjOIdungU3"),
        Game("chaser", 0.663, 9.956, "17c8NyuT-_IU7ymZYh3qGy_zOgm3XwcHb"),
        Game("climber", 2.224, 10.234, "1qiomp1WF_KYEqbL5SWgXhZOLoaFYjoJl"),
        Game("coinrun", 2.705, 9.933, "14Dfs1xy4u2IOfzLISm8adTA5IwtCsAo7"),
        Game("dodgeball", 0.613, 13.487, "1q7DZkTwys0yWEWWkd7ddGczTSwGyJVXG"),
        Game("fruitbot", -2.533, 29.925, "1zJw1MNxeSxjeS78Btzqo3c6oq4kXqpKH"),
        Game("heist", 3.076, 9.685, "1FMCKSxCOQFjNOlUOHpARK9u0w0BFaXlx"),
        Game("jumper", 3.411, 8.460, "1lv1QGv06AJMClX_Iyw9HdXUEiHgnIWX3"),
        Game("leaper", 2.511, 7.408, "1S8pR6heQVGixbJ0f1u4kKPji1m481l2a"),
        Game("maze", 4.273, 9.969, "18eeqTAZg1OeyN3qQFdyC-Y0l-6niM5Me"),
        Game("miner", 1.251, 11.893, "177IBL8ByPBlyCKCc-1jbiwVZklc_2ga0"),
        Game("ninja", 2.560, 9.475, "10sXxsoOU2Jcczu91dio7ScpZIAo6sGGP"),
        Game("plunder", 4.321, 11.461, "1KzaDi7D8cc_k7M1JyrWtkk88kaS_upRy"),
        Game("starpilot", 1.525, 66.986, "1AH6fO7zIp_SQYxJS0aoc81OA-UkWFp1W"),
    )
}

ACTION_NAMES: tuple[str, ...] = (
    "LEFT-DOWN",
    "LEFT",
    "LEFT-UP",
    "DOWN",
    "NOOP",
    "UP",
    "RIGHT-DOWN",
    "RIGHT",
    "RIGHT-UP",
    "D",
    "A",
    "W",
    "S",
    "Q",
    "E",
)  # fmt: skip
NUM_ACTIONS = len(ACTION_NAMES)


def get_game(name: str) -> Game:
    """The game of that name.

    Raises:
        UnknownNameError: there is none; the message offers the nearest name.
    """
    if name in GAMES:
        return GAMES[name]
    near = difflib.get_close_matches(name.lower(), GAMES, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"the games are {', '.join(GAMES)}."
    raise UnknownNameError(f"There is no game '{name}': {hint}")


def parse_games(names: Sequence[str]) -> list[Game]:
    """Games from command-line words: names, comma-separated lists of them, or ``all``; duplicates dropped.

    Raises:
        UnknownNameError: a word is neither a game nor ``all``.
    """
    words = [word.strip() for name in names for word in name.split(",") if word.strip()]
    found: dict[str, Game] = {}
    for word in words:
        chosen = GAMES.values() if word == "all" else [get_game(word)]
        found.update({game.name: game for game in chosen})
    if not found:
        raise UnknownNameError("No game was named: give one or more games, or 'all'.")
    return list(found.values())
