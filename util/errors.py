"""The one exception that ends a script without a traceback."""


class InputError(ValueError):
    """Something that the user gave cannot be used; the message names it and says what to do. The scripts exit with 2."""
