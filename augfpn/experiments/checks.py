"""Checks of what a description says, with errors for people."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import dacite

from augfpn.errors import UserError

Description = TypeVar("Description")


def require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def require_positive(config: Any, *names: str, most: int = 2**31 - 1) -> None:
    """Every field is None, a finite number above 0, or an integer from 1 to ``most``."""
    for name in names:
        value = getattr(config, name)
        require(value is None or 0 < value < inf, f"{name} must be positive, not {value}.")
        require(not isinstance(value, int) or value <= most, f"{name} must be at most {most}, not {value}.")


def require_fraction(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(0 <= value <= 1, f"{name} must be between 0 and 1, not {value}.")


def require_seed(seed: int) -> None:
    require(0 <= seed < 2**63, f"the seed must not be negative and below 2^63, but is {seed}.")


def require_choices(config: Any) -> None:
    """Every field that is one of several values is one of them."""
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal:
            value, choices = getattr(config, name), get_args(hint)
            require(value in choices, f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}.")


def read_description(kind: type[Description], content: Mapping[str, Any]) -> Description:
    """A description from what a file says; a UserError names a field that is unknown or of another type."""
    try:
        return dacite.from_dict(kind, content, dacite.Config(strict=True, type_hooks={int: _number, float: _number}))
    except UserError:
        raise
    # Of an object where a list should be, dacite raises what the place where it breaks does.
    except (dacite.DaciteError, ValueError, TypeError, AttributeError) as error:
        raise UserError(str(error)) from error


def _number(value: Any) -> Any:
    """To Python, true and false are numbers."""
    require(not isinstance(value, bool), f"expected a number, found {value}")
    return value
