"""Zip files of npz chunks that must be fetched first: the official ones on Google Drive, or one at any address."""

from dataclasses import dataclass, field
from pathlib import Path

from lapo_cli.core.data.fetch import drive_url, fetch_zip
from lapo_cli.core.data.sources.base import SOURCES, Bounds, Importer, Offer, Source, bounded
from lapo_cli.core.data.sources.npz import ChunkImporter, chunks_source, find_chunks
from lapo_cli.core.data.store import SPLITS, Manifest, Split
from lapo_cli.core.errors import MissingInputError
from lapo_cli.core.progress import Progress

DRIVE_IDS = {
    "bigfish": "10xwWejz1ZwccxV7O4fqbDTP_260OsBU5",
    "bossfight": "11x3-8eh0M4KsnDYW3pVRHjlOIGVCeuMz",
    "caveflyer": "1YdSG3Y3Tyf-UnL4I-ZXGGlJjOIdungU3",
    "chaser": "17c8NyuT-_IU7ymZYh3qGy_zOgm3XwcHb",
    "climber": "1qiomp1WF_KYEqbL5SWgXhZOLoaFYjoJl",
    "coinrun": "14Dfs1xy4u2IOfzLISm8adTA5IwtCsAo7",
    "dodgeball": "1q7DZkTwys0yWEWWkd7ddGczTSwGyJVXG",
    "fruitbot": "1zJw1MNxeSxjeS78Btzqo3c6oq4kXqpKH",
    "heist": "1FMCKSxCOQFjNOlUOHpARK9u0w0BFaXlx",
    "jumper": "1lv1QGv06AJMClX_Iyw9HdXUEiHgnIWX3",
    "leaper": "1S8pR6heQVGixbJ0f1u4kKPji1m481l2a",
    "maze": "18eeqTAZg1OeyN3qQFdyC-Y0l-6niM5Me",
    "miner": "177IBL8ByPBlyCKCc-1jbiwVZklc_2ga0",
    "ninja": "10sXxsoOU2Jcczu91dio7ScpZIAo6sGGP",
    "plunder": "1KzaDi7D8cc_k7M1JyrWtkk88kaS_upRy",
    "starpilot": "1AH6fO7zIp_SQYxJS0aoc81OA-UkWFp1W",
}
# About what a game's official zip file holds; how much exactly shows when it is here.
_OFFICIAL_FRAMES: dict[Split, int] = {"train": 80 * 32_768, "test": 16 * 4_096}
_OFFICIAL_FRAME_BYTES = 64 * 64 * 3


class DriveSource(Source):
    """See the module."""

    name = "drive"
    description = "The official demonstrations on Google Drive, or the http(s) address of a zip file of npz chunks."

    def open(self, game: str, location: str | None, scratch: Path) -> Importer | None:
        """See :meth:`Source.open`."""
        if location is not None:
            is_address = location.startswith(("http://", "https://"))
            return RemoteImporter(game, location, scratch, official=False) if is_address else None
        if game not in DRIVE_IDS:
            raise MissingInputError(
                f"There are no official demonstrations of '{game}', only of {', '.join(DRIVE_IDS)}: for your own, run "
                f"'lapo download {game} --from PATH'."
            )
        return RemoteImporter(game, drive_url(DRIVE_IDS[game]), scratch, official=True)


@dataclass(frozen=True)
class RemoteImporter(Importer):
    """A zip file of npz chunks at an address.

    Attributes:
        game: its name.
        url: the address.
        scratch: where the file is kept.
        official: whether it is the published set, whose size is roughly known.
    """

    game: str
    url: str = field()  # Otherwise it would inherit the default of Importer.
    scratch: Path
    official: bool

    def fetch(self, progress: Progress) -> Importer:
        """See :meth:`Importer.fetch`."""
        advice = [
            "wait up to 24 hours and run the same command again",
            f"fetch {self.url} in a browser and run `lapo download {self.game} --from FILE.zip`",
            f"use the bundled demonstrations with `lapo download {self.game} --source demos`",
        ]
        if_refused = f"{', or '.join(advice if self.official else advice[:2])}."
        archive = fetch_zip(self.url, self.game, self.scratch, if_refused=if_refused, progress=progress)
        chunks = find_chunks(archive, self.game)
        if not chunks:
            raise MissingInputError(
                f"The zip file at {self.url} holds no chunks of {self.game}: they are expected as "
                f"{self.game}/train/0.npz or train/0.npz and so on."
            )
        return ChunkImporter(self.game, chunks, self.url, self.scratch)

    def offers(self, bounds: Bounds) -> dict[Split, Offer]:
        """What can presumably be made; nothing is requested from the server."""
        found = {}
        for split in SPLITS:
            frames = bounded(_OFFICIAL_FRAMES[split], bounds[split])
            size = (frames, _OFFICIAL_FRAME_BYTES) if self.official else (None, None)
            found[split] = Offer(chunks_source(self.url, bounds[split]), *size)
        return found

    def store(self, split: Split, data_dir: Path, bound: int | None, progress: Progress) -> Manifest:
        """See :meth:`Importer.store`; fetches first."""
        return self.fetch(progress).store(split, data_dir, bound, progress)


SOURCES.register(DriveSource())
