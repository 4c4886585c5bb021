"""Checks of what a description says, with errors for people."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin, get_type_hints

from augfpn.errors import UserError


def require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def require_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(value is None or value > 0, f"{name} must be positive, not {value}.")


def require_fraction(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(0 <= value <= 1, f"{name} must be between 0 and 1, not {value}.")


def require_choices(config: Any) -> None:
    """Every field that is one of several values is one of them."""
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal:
            value, choices = getattr(config, name), get_args(hint)
            require(value in choices, f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}.")
