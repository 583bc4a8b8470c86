"""Ctrl-C and SIGTERM: the first one stops the work cleanly, repetitions within a second are ignored.

The same request often comes more than once: a held Ctrl-C repeats, and a terminal signals a whole group of processes
while a parent process forwards what it got.
"""

import atexit
import ctypes
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""Exit code of a process that was interrupted."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_REPEAT_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1
_PRCTL = getattr(ctypes.CDLL(None), "prctl", None)  # Looked up here, since a new process must not load libraries.
_ATTEMPT_SECONDS, _MOST_ATTEMPTS = 0.02, 1000  # to interrupt an import that does not end
_last_request = -math.inf
_awaits_import = False  # Whether a request came during an import and is still to be delivered.


def _is_repeated() -> bool:
    global _last_request
    now = time.monotonic()
    if now - _last_request < _REPEAT_SECONDS:
        return True
    _last_request = now
    return False


@contextmanager
def _handled_by(
    handler: Callable[[int, FrameType | None], None], numbers: Sequence[signal.Signals] = _SIGNALS
) -> Iterator[None]:
    global _last_request
    if threading.current_thread() is not threading.main_thread():  # Python handles signals there alone.
        yield
        return
    _last_request = -math.inf
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)


def end_with_parent() -> None:
    """In a new process, before its program starts: have it interrupted when the one that started it has ended."""
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def interrupting() -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into KeyboardInterrupt; clean-up has a second before another one can disturb it.

    One that comes during an import is delivered after it: libraries catch what is raised while they are imported, or
    abort the process.
    """

    global _awaits_import
    attempts = iter(range(_MOST_ATTEMPTS))

    def interrupt(number: int, frame: FrameType | None) -> None:
        global _awaits_import
        if _is_repeated():
            return
        _awaits_import = _is_importing(frame) and next(attempts, None) is not None
        if not _awaits_import:
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, _ATTEMPT_SECONDS)

    def attempt(number: int, frame: FrameType | None) -> None:
        global _awaits_import, _last_request
        _awaits_import, _last_request = False, -math.inf
        signal.raise_signal(signal.SIGINT)  # Whoever handles it by now, such as a training loop.

    with _handled_by(interrupt), _handled_by(attempt, (signal.SIGALRM,)):
        try:
            yield
        finally:
            _awaits_import = False
            signal.setitimer(signal.ITIMER_REAL, 0)


def raise_awaiting() -> None:
    """Deliver now what waits for the end of an import: the work may be over before the next attempt.

    Raises:
        KeyboardInterrupt: there is such a request.
    """
    global _awaits_import
    if _awaits_import:
        _awaits_import = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into an event, so that no update is cut in half.

    One that comes a second or more after it raises KeyboardInterrupt at once.
    """
    event = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        if _is_repeated():
            return
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    with _handled_by(note):
        yield event


@contextmanager
def postponed() -> Iterator[None]:
    """Deliver Ctrl-C and SIGTERM after the block; a process that is started in it gets them after :func:`deliver`."""
    received: list[int] = []
    try:
        with _handled_by(lambda number, frame: received.append(number)):
            # What is blocked stays so in a new process; here it would still reach the other threads.
            previous = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            try:
                yield
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, previous)
    finally:
        for number in received:
            signal.raise_signal(number)


def deliver() -> None:
    """Let Ctrl-C and SIGTERM reach this thread, also those that are pending."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def exit_at_once() -> None:
    """From now on Ctrl-C and SIGTERM end the process silently: it is starting or ending and has nothing to lose.

    Python's own handler would print a traceback.
    """
    for number in _SIGNALS:
        signal.signal(number, lambda number, frame: os._exit(INTERRUPTED))
    atexit.register(_ignore)  # At the very end Python removes its handlers.


def _ignore() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
