"""The one exception that stands for bad input."""


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a field, an argument.

    The message names it and the remedy in one or two lines. The command line prints it without a traceback and exits
    with code 2; in Python it is a `ValueError`.

    Examples
    --------
    >>> raise InputError("data.root: no folder 'birds'; give an existing folder with one sub-folder a class")
    Traceback (most recent call last):
    ...
    orthoproxy.errors.InputError: data.root: no folder 'birds'; give an existing folder with one sub-folder a class
    """
