"""The one exception a user is meant to see."""


class InputError(ValueError):
    """Bad input that the user can mend: a file, a flag or a data set.

    The message is one line: what happened, what was expected, what was found and how to fix it.
    Command-line programs print it without a traceback and exit with code 1.
    """
