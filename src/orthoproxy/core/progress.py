"""Progress and remaining time of long work."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from functools import cache

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from orthoproxy.core.errors import escape
from orthoproxy.core.processes import is_main


@cache
def note_once(text: str) -> None:
    """Print a note on standard error, in the main process, unless it was printed before."""
    if is_main():
        print(f"note: {escape(text)}", file=sys.stderr)


class Progress:
    """Progress of the main process on standard error: a bar in a terminal, else a line every `every` seconds."""

    def __init__(self, what: str, total: int, done: int = 0, every: float = 10.0, shown: bool = True) -> None:
        self.what, self.total, self.done, self.every = what, total, done, every
        self.note = ""  # shown beside the count, for example a loss
        self.shown = shown = shown and is_main()
        self._first, self._start, self._last_line = done, time.monotonic(), time.monotonic()
        console = Console(stderr=True)
        self._bar: Bar | None = None
        if shown and console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            left = (TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
            self._bar = Bar(*columns, *left, console=console)
            self._task = self._bar.add_task(what, total=total, completed=done, note="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, steps: int = 1, unit: str | None = None) -> None:
        """Count steps as done; `unit` names them and shows their rate beside `note`."""
        self.done += steps
        if not self.shown:
            return
        now = time.monotonic()
        speed = f"{(self.done - self._first) / max(now - self._start, 1e-9):.0f} {unit}/s" if unit else ""
        beside = "  ".join(part for part in (self.note, speed) if part)
        if self._bar:
            self._bar.update(self._task, advance=steps, note=beside)
        elif now - self._last_line >= self.every:
            self._last_line = now
            elapsed = now - self._start
            left = elapsed / max(1, self.done - self._first) * (self.total - self.done)
            times = f"{duration(elapsed)} elapsed, {duration(left)} left"
            self.say(f"{self.what} {self.done}/{self.total}, {times}  {beside}".rstrip())

    def say(self, line: str) -> None:
        """Print a line that stays, above the bar."""
        if not is_main():
            return
        if self._bar:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Format a time as hours:minutes:seconds."""
    return str(timedelta(seconds=round(seconds)))
