"""What reaches the user as a line of text: the one exception that ends a script without a traceback, and messages."""
import sys


class InputError(ValueError):
    """Something that the user gave cannot be used; the message names it and says what to do. The scripts exit with 2."""


def say(text):
    """Print to stderr: stdout carries the results alone."""
    print(text, file=sys.stderr, flush=True)
