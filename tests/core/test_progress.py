"""Lines in a log, and a bar in a terminal."""

from types import SimpleNamespace

from rich.console import Console

from orthoproxy.core import progress
from orthoproxy.core.progress import Progress


def test_a_log_gets_a_line_now_and_then_with_the_time_left(monkeypatch, capsys) -> None:
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(progress, "time", clock)
    with Progress("embed", total=100, done=20, every=10) as shown:  # 20 by an earlier run
        shown.note = "loss 2.5"
        for _ in range(40):
            clock.now += 1
            shown.advance()
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == "" and len(lines) == 4
    assert lines[0] == "embed 30/100, 0:00:10 elapsed, 0:01:10 left  loss 2.5"
    assert lines[-1] == "embed 60/100, 0:00:40 elapsed, 0:00:40 left  loss 2.5"


def test_a_terminal_gets_a_bar_with_count_and_note(monkeypatch, capsys) -> None:
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(stderr=stderr, force_terminal=True, width=100))
    with Progress("embed", total=4, done=1) as shown:
        shown.note = "loss 2.5"
        shown.advance()
        shown.say("epoch 1: [loss] 2.5")
    written = capsys.readouterr().err
    assert "embed" in written and "2/4" in written and "loss 2.5" in written
    assert "epoch 1: [loss] 2.5" in written
