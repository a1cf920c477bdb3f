"""What reaches the user as a line of text: the one exception that ends a script without a traceback, and messages."""

import sys

import distributed


class InputError(ValueError):
    """Something that the user gave cannot be used; the message names it and says what to do. The scripts exit with 2."""


def say(text: str) -> None:
    """Print to stderr, once whatever the number of ranks: stdout carries the results alone."""
    if distributed.rank() == 0:
        print(text, file=sys.stderr, flush=True)
