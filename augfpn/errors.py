"""Mistakes of the outside world rather than of this code."""

# The exit status of what was interrupted and wants to be started again. Grid Engine requeues a job for it, LSF and
# SLURM where they are told to (REQUEUE_EXIT_VALUES, RequeueExit).
REQUEUE = 99


class Interrupted(Exception):  # noqa: N818 (nothing went wrong)
    """Stopped because it was asked to; all that was made is kept. The message says how to go on."""


class UserError(ValueError):
    """Something that a person can put right; the message says what was expected, what was found, where, and what to do.

    The command line prints the message alone, without a traceback.
    """


def first_line(error: Exception) -> str:
    """Of an error of a library, whose messages can be long or empty."""
    return next(iter(str(error).splitlines()), type(error).__name__)
