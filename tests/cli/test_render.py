"""Progress: plain lines where there is no terminal, bars where there is one, nothing when it shall be quiet."""

import io

import pytest
from rich.console import Console

from lapo_cli.cli import render
from lapo_cli.cli.render import Bars, Lines, Meter, progress_on, short
from lapo_cli.core.progress import Silent, clock_time


class _Clock:
    """Seconds that pass only when the test advances them."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class _Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def _meter(clock: _Clock, shown: list[str], total: int = 2_000, unit: str = "step", done: int = 0) -> Meter:
    return Meter(total, unit, done, show=lambda meter: shown.append(meter.text()), seconds=10, clock=clock)


def test_at_most_one_line_is_printed_every_ten_seconds() -> None:
    clock, shown = _Clock(), list[str]()
    meter = _meter(clock, shown)
    for done in range(1, 501):
        clock.now += 0.0625
        meter.update(done, loss=0.03123, probe_accuracy=0.25)
    assert len(shown) == 3
    assert shown[0] == "160/2,000 steps (8%), 16 steps/s, 1:55 left, loss 0.0312, probe accuracy 0.25"


def test_the_rate_forgets_a_slow_start() -> None:
    clock, shown = _Clock(), list[str]()
    meter = _meter(clock, shown)
    clock.now += 100
    meter.update(1)
    for done in range(2, 1_000):
        clock.now += 0.1
        meter.update(done)
    assert "10 steps/s" in shown[-1]


def test_a_resumed_task_counts_its_rate_from_where_it_resumed() -> None:
    clock, shown = _Clock(), list[str]()
    meter = _meter(clock, shown, done=1_000)
    clock.now += 10
    meter.update(1_100)
    assert shown == ["1,100/2,000 steps (55%), 10 steps/s, 1:30 left"]


def test_bytes_and_unknown_totals() -> None:
    clock, shown = _Clock(), list[str]()
    meter = _meter(clock, shown, total=0, unit="bytes")
    clock.now += 10
    meter.update(50_000_000)
    assert shown == ["50.0 MB, 5.0 MB/s"]


def test_only_three_metrics_are_shown() -> None:
    clock, shown = _Clock(), list[str]()
    meter = _meter(clock, shown)
    meter.update(1, **{"a/b": 1.0, "c_d": float("nan"), "e": 12_345.6, "f": 4.0})
    meter.close()
    assert shown[0].endswith("a b 1, c d nan, e 12,346")


def test_lines_end_with_where_the_task_stopped() -> None:
    stream = io.StringIO()
    progress = Lines(Console(file=stream, width=80))

    def break_off() -> None:
        with progress.task("A name much longer than one would want it to be", 10, "chunks") as task:
            task.update(4, something_with_a_long_name=1.5, something_with_another_long_name=2.5)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    progress.log("A [sentence].")
    first, second = stream.getvalue().splitlines()
    assert first.startswith("A name much longer than one would want it to be: 4/10 chunks (40%)")
    assert first.endswith("something with another long name 2.5")
    assert second == "A [sentence]."


def test_a_line_just_shown_is_not_repeated_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "_LINE_SECONDS", 0)
    stream = io.StringIO()
    with Lines(Console(file=stream)).task("Task", 2, "steps") as task:
        task.update(1)
        task.update(2)
    assert len(stream.getvalue().splitlines()) == 2


def test_bars_leave_one_line_a_task_behind() -> None:
    stream = _Tty()
    progress = Bars(Console(file=stream, force_terminal=True, width=80, no_color=True))
    with progress.task("Outer", 2, "games") as outer, progress.task("Inner", 3, "steps", 1) as inner:
        inner.update(3, loss=0.5)
        progress.log("A [sentence].")
        outer.update(1)
    text = stream.getvalue()
    assert "Inner: 3/3 steps (100%)" in text
    assert "Outer: 1/2 games (50%)" in text
    assert "A [sentence]." in text


def test_the_rendering_suits_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(progress_on(Console(file=_Tty(), force_terminal=True), quiet=False), Bars)
    assert isinstance(progress_on(Console(file=io.StringIO(), force_terminal=True), quiet=False), Lines)
    assert isinstance(progress_on(Console(file=_Tty(), force_terminal=True), quiet=True), Silent)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(progress_on(Console(file=_Tty(), force_terminal=True), quiet=False), Lines)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (468, "7:48"), (7668, "2:07:48")])
def test_clock_time(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.03123, "0.0312"), (3.2, "3.2"), (12_345.6, "12,346"), (-2e-7, "-2e-07")]
)
def test_short(value: float, text: str) -> None:
    assert short(value) == text
