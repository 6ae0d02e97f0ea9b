"""The error of a call."""

from collections.abc import Callable

import pytest

from orthoproxy.core.errors import InputError


def error_of(call: Callable[..., object], *args: object, **options: object) -> InputError:
    """Call a function with input that it cannot use, and return what it raises."""
    with pytest.raises(InputError) as caught:
        call(*args, **options)
    return caught.value
