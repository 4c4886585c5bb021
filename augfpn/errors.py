"""Mistakes of the outside world rather than of this code."""


class UserError(ValueError):
    """Something that a person can put right; the message says what was expected, what was found, where, and what to do.

    The command line prints the message alone, without a traceback.
    """
