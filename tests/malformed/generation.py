"""How inputs are generated: the same ones in every run, so that a fault can be found again."""

import copy

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# In the place of a value: the field is left out.
MISSING = object()

# Any JSON, in files and in places of files.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=3), inside, max_size=3),
    max_leaves=5,
)


def repeatable(num):
    """Settings for ``num`` examples, which are the same in every run."""
    suppressed = list(HealthCheck)
    return settings(max_examples=num, deadline=None, derandomize=True, database=None, suppress_health_check=suppressed)


def places(content, place=()):
    """Every place of a JSON content but the whole, as the steps that lead there."""
    for key, inside in content.items() if isinstance(content, dict) else enumerate(content):
        yield (*place, key)
        if isinstance(inside, dict | list):
            yield from places(inside, (*place, key))


def changed(content, *changes):
    """The content with other values at some places, each as the steps that lead there."""
    content = copy.deepcopy(content)
    for (*way, last), value in changes:
        inside = content
        for step in way:
            inside = inside[step]
        if value is MISSING:
            del inside[last]
        else:
            inside[last] = value
    return content
