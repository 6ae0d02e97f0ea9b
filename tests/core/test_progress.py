"""Lines in a log, a bar in a terminal, and times."""

import pytest
from rich.console import Console

from orthoproxy.core import progress
from orthoproxy.core.progress import Progress, duration, track


class Clock:
    """A clock that stands still until told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_log_gets_a_line_now_and_then_with_the_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("embed", total=100, done=20, every=10) as shown:  # 20 by an earlier run
        shown.note = "loss 2.5"
        for _ in range(40):
            clock.now += 1
            shown.advance()
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == "" and len(lines) == 4
    assert lines[0] == "embed 30/100, 0:10 elapsed, 1:10 left  loss 2.5"
    assert lines[-1] == "embed 60/100, 0:40 elapsed, 0:40 left  loss 2.5"


def test_a_terminal_gets_a_bar_with_count_and_note(monkeypatch, capsys) -> None:
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(stderr=stderr, force_terminal=True, width=100))
    with Progress("embed", total=4, done=1) as shown:
        shown.note = "loss 2.5"
        shown.advance()
        shown.say("epoch 1: [loss] 2.5")
    written = capsys.readouterr().err
    assert "embed" in written and "2/4" in written and "loss 2.5" in written
    assert "epoch 1: [loss] 2.5" in written


def test_track_passes_items_on_and_counts_them(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    for item in track("abc", "spell", total=3):
        seen.append(item)
        clock.now += 11
    counts = [line.split(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert seen == ["a", "b", "c"] and counts == ["spell 1/3", "spell 2/3", "spell 3/3"]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3599.5, "1:00:00"), (90061, "25:01:01")])
def test_durations_read_as_clocks(seconds: float, text: str) -> None:
    assert duration(seconds) == text
