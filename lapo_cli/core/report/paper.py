"""What the paper reached, read by eye off its public figures: +-2 % of an axis, three seeds, easy mode, all levels."""

NOTE = "read by eye off the paper's figures, ±2 % of an axis; 3 seeds, 4 M steps online"

STEPS = (50_000, 250_000, 500_000, 1_000_000, 2_000_000, 4_000_000)
ONLINE = {
    "online": ("paper: RL + SL", (0.45, 0.73, 0.82, 0.87, 0.93, 1.00)),
    "rl-only": ("paper: RL only", (0.35, 0.67, 0.69, 0.74, 0.84, 0.93)),
    "rl-only-no-quantizer": ("paper: RL only, no quantizer", (0.27, 0.48, 0.58, 0.66, 0.73, 0.81)),
    "scratch": ("paper: PPO from scratch", (0.11, 0.09, 0.14, 0.22, 0.32, 0.44)),
}
"""Stage -> label, and mean normalized return over 16 games after :data:`STEPS`."""

LABELS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
OFFLINE = (0.05, 0.15, 0.23, 0.32, 0.50, 0.55, 0.57, 0.57, 0.57, 0.575)
"""Mean normalized return over 16 games for :data:`LABELS` labelled frames."""

_COLUMNS = ("expert", "online", "rl-only", "scratch", "offline-256", "offline-8192")
_RETURNS = {
    "bigfish": (36.3, 35, 34.5, 2.6, 36.4, 36.9),
    "bossfight": (11.6, 10.6, 10.4, 9.3, 9.5, 10.2),
    "caveflyer": (9.2, 8.3, 6.5, 5.2, 3.4, 3.6),
    "chaser": (10.0, 10.1, 9.3, 3.6, 0.9, 1.0),
    "climber": (10.2, 10.5, 9.9, 5.2, 4.3, 5.8),
    "coinrun": (9.9, 9.8, 9.5, 9.2, 6.5, 6.6),
    "dodgeball": (13.5, 15.7, 14.9, 1.5, 14.0, 14.4),
    "fruitbot": (29.9, 29.5, 29.6, 27.6, 1.8, 2.5),
    "heist": (9.7, 9.9, 9.8, 3.4, 9.4, 9.7),
    "jumper": (8.5, 8.8, 8.7, 6.8, 7.5, 7.6),
    "leaper": (7.4, 6.8, 6.9, 5.3, 2.5, 2.6),
    "maze": (10.0, 9.9, 9.9, 7.4, 7.5, 9.4),
    "miner": (11.9, 12.0, 10.9, 5.7, 7.3, 9.0),
    "ninja": (9.5, 9.4, 8.3, 5.2, 6.3, 6.6),
    "plunder": (11.5, 13.8, 11.2, 4.0, 2.9, 4.5),
    "starpilot": (67.0, 56.3, 52.9, 36.4, 52.8, 52.6),
}


def published(game: str, stage: str, labels: int | None) -> float | None:
    """The paper's mean return on a game of what a stage trains; None where it is not known.

    Args:
        stage: its name; ``expert`` for the demonstrations.
    """
    column = stage if labels is None else f"{stage}-{labels}"
    if game not in _RETURNS or column not in _COLUMNS:
        return None
    return float(_RETURNS[game][_COLUMNS.index(column)])
