"""What a person, a program or a network can hand in that is broken, by kind; see `test_count`."""

import signal

import pytest

# Nothing here takes longer than a few seconds on an idle core; what waits for ever, such as for a pipe, does.
SECONDS = 60


@pytest.fixture(autouse=True)
def time_limit():
    """A test that hangs fails."""

    def fail(*_):
        raise TimeoutError(f"not done within {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
