"""The error of a call or of a command."""

from collections.abc import Callable, Sequence

import pytest

from orthoproxy.cli.main import _run, main, parse
from orthoproxy.core.errors import InputError


def error_of(call: Callable[..., object], *args: object, **options: object) -> InputError:
    """Call a function with input that it cannot use, and return what it raises."""
    with pytest.raises(InputError) as caught:
        call(*args, **options)
    return caught.value


def input_error(arguments: Sequence[object]) -> InputError:
    """Run a command and return the error that `main` would print."""
    with pytest.raises(InputError) as caught:
        _run(str(arguments[0]), parse([*map(str, arguments)])[1])
    return caught.value


def rejected(arguments: Sequence[object], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must end as bad input, without a traceback; return its message."""
    capsys.readouterr()
    code, error = main([str(word) for word in arguments]), capsys.readouterr().err
    assert code == 2, error
    return message(error)


def message(error: str) -> str:
    """The message that a command ended with."""
    assert "Traceback" not in error, error
    return error[error.index("orthoproxy: ") :].strip()
