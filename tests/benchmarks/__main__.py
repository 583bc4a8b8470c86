"""``python -m tests.benchmarks [--only NAME ...] [--rounds N]``: fast against plain on this machine's CPU.

Takes about six minutes on two idle cores. Every ratio is the median over rounds in which both sides are timed one
after the other.

``python -m tests.benchmarks --device cuda [--seconds N]`` measures every training of the paper preset on one device
instead, and prints one JSON document.
"""

import argparse
import json

from lapo_cli.core.compute import resolve
from lapo_cli.core.config_loading import load_config
from tests.benchmarks import device, launchers, storage, training
from tests.benchmarks.timing import Line


def _videos(rounds: int) -> list[Line]:
    from tests.benchmarks import videos  # Late, because PyAV is an extra.

    return videos.videos(rounds)


PIECES = {
    "stage1": training.stage1,
    "stage2": training.stage2,
    "stage3": training.stage3,
    "memory": storage.memory,
    "stores": storage.stores,
    "videos": _videos,
    "launchers": launchers.launchers,
}
_USUAL = [name for name in PIECES if name != "launchers"]  # They take five minutes more, and need Ray and SLURM.


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(PIECES), default=_USUAL, help="default: all but launchers")
    parser.add_argument("--rounds", type=int, default=5, help="timings of each side (5; launchers: 1)")
    parser.add_argument("--device", help="measure the trainings of a preset on this device, for example cuda")
    parser.add_argument("--preset", default="paper", help="of those trainings (paper)")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each of their timings, of which there are 5")
    arguments = parser.parse_args()
    if arguments.device is not None:
        found = device.measure(arguments.device, load_config(arguments.preset), seconds=arguments.seconds)
        print(json.dumps(found, indent=2, allow_nan=False))
        return
    print(training.describe(resolve("cpu")), flush=True)
    lines = [Line("", "plain", "fast", "ratio or value", "to reach")]
    for name in arguments.only:
        print(f"timing {name} ...", flush=True)
        lines += PIECES[name](arguments.rounds)
    cells = [(line.name, line.plain, line.fast, line.result, line.target) for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print()
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
