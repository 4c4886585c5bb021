"""From other people's names of weights to ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from augfpn.errors import UserError

# Unknown names that a message shows before it counts the rest.
SHOWN = 5

Rules = Sequence[tuple[str, str]]


def renamed(state: Mapping[str, Tensor], rules: Rules, source: str) -> dict[str, Tensor]:
    """The same tensors under the names that the first matching rule, a regular expression of a whole name, gives.

    A UserError names what no rule is for; ``source`` says whose names they should be.
    """
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]
    ours: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in state.items():
        matches = ((pattern.fullmatch(name), replacement) for pattern, replacement in compiled)
        found = next(((match, replacement) for match, replacement in matches if match), None)
        if found is None:
            unknown.append(name)
            continue
        match, replacement = found
        ours[match.expand(replacement)] = tensor
    if unknown:
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        raise UserError(
            f"These are no names of weights of {source}: {', '.join(unknown[:SHOWN])}{more}. "
            "Give a state dict of a whole detector or of one of its parts."
        )
    return ours
