"""Progress as the user sees it: bars on a terminal, a plain line now and then elsewhere."""

import collections
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as RichBars
from rich.table import Column
from rich.text import Text

from lapo_cli.core.errors import one_line
from lapo_cli.core.files import human_bytes
from lapo_cli.core.progress import Progress, Silent, clock_time

_BAR_SECONDS = 0.2
_LINE_SECONDS = 10.0
_WINDOW_SECONDS = 30.0
_MOST_METRICS = 3


def progress_on(console: Console, *, quiet: bool) -> Progress:
    """The rendering that suits where ``console`` writes."""
    if quiet:
        return Silent()
    return Bars(console) if console.file.isatty() and console.is_interactive else Lines(console)


class Meter:
    """One task: how far it is, how fast, and when to show it.

    Args:
        show: called at most every ``seconds``, with the meter up to date.
        clock: seconds from any fixed moment.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        done: int,
        *,
        show: Callable[["Meter"], None],
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.done = total, done
        self.unit = unit if unit.endswith("s") else f"{unit}s"
        self.metrics: dict[str, float] = {}
        self._show, self._seconds, self._clock = show, seconds, clock
        self._shown_at, self._shown_done = clock(), -1
        self._samples = collections.deque([(self._shown_at, done)])

    def update(self, done: int, **metrics: float) -> None:
        """See :class:`lapo_cli.core.progress.Task`."""
        self.done = done
        if metrics:
            self.metrics.update(metrics)
        if self._clock() - self._shown_at >= self._seconds:
            self._refresh()

    def close(self) -> None:
        """Show how far the task came, unless that was shown before."""
        if self.done != self._shown_done:
            self._refresh()

    def _refresh(self) -> None:
        self._shown_at, self._shown_done = self._clock(), self.done
        self._samples.append((self._shown_at, self.done))
        while len(self._samples) > 2 and self._shown_at - self._samples[1][0] >= _WINDOW_SECONDS:
            self._samples.popleft()
        self._show(self)

    def text(self) -> str:
        """``500/2,000 steps (25%), 3.2 steps/s, 7:48 left, loss 0.0312``; the rate is that of the last half minute."""
        (then, before), (now, done) = self._samples[0], self._samples[-1]
        rate = (done - before) / (now - then) if now > then else 0.0
        parts = [self._amount()]
        if rate > 0:
            parts.append(f"{human_bytes(rate)}/s" if self.unit == "bytes" else f"{short(rate)} {self.unit}/s")
        if rate > 0 and self.done < self.total:
            parts.append(f"{clock_time((self.total - self.done) / rate)} left")
        shown = list(self.metrics.items())[:_MOST_METRICS]
        return ", ".join(parts + [f"{wording(name)} {short(value)}" for name, value in shown])

    def _amount(self) -> str:
        if self.unit == "bytes":
            done, total, unit = human_bytes(self.done), human_bytes(self.total), ""
        else:
            done, total, unit = f"{self.done:,}", f"{self.total:,}", f" {self.unit}"
        return f"{done}/{total}{unit} ({self.done / self.total:.0%})" if self.total > 0 else f"{done}{unit}"


class Lines:
    """Plain lines for log files: one every ten seconds or so a task, and one at its end."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def task(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Meter]:
        """Open a task; see :class:`lapo_cli.core.progress.Progress`."""
        meter = Meter(total, unit, done, show=lambda meter: self.log(f"{name}: {meter.text()}"), seconds=_LINE_SECONDS)
        try:
            yield meter
        finally:
            meter.close()

    def log(self, message: str) -> None:
        """Print one line."""
        self._console.print(Text(one_line(message)), soft_wrap=True)


class Bars:
    """A bar for each task under way; it leaves a line behind when it ends."""

    def __init__(self, console: Console) -> None:
        self._bars = RichBars(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=True,
        )

    @contextmanager
    def task(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Meter]:
        """Open a task; see :class:`lapo_cli.core.progress.Progress`."""
        bars = self._bars
        bar = bars.add_task(name, total=total or None, completed=done, text="")
        meter = Meter(
            total,
            unit,
            done,
            show=lambda meter: bars.update(bar, completed=meter.done, text=meter.text()),
            seconds=_BAR_SECONDS,
        )
        bars.start()
        try:
            yield meter
        finally:
            meter.close()
            bars.remove_task(bar)
            self.log(f"{name}: {meter.text()}")
            if not bars.tasks:
                bars.stop()

    def log(self, message: str) -> None:
        """Print one line above the bars."""
        self._bars.console.print(Text(one_line(message)), soft_wrap=True)


def wording(name: str) -> str:
    """``probe/untrained_idm`` -> ``'probe untrained idm'``."""
    return name.replace("_", " ").replace("/", " ")


def short(value: float) -> str:
    """A number in three or four digits: ``0.0312``, ``3.2``, ``12,345``."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
