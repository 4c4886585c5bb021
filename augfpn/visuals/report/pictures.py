"""Pictures that lie in the page itself."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from augfpn.visuals.plots import Figure


@dataclass(frozen=True)
class Picture:
    """``source`` is the picture; ``description`` stands in for it where it cannot be seen."""

    source: str
    description: str


def picture(figure: Figure, description: str) -> Picture:
    return Picture(f"data:image/png;base64,{base64.b64encode(figure.png()).decode()}", description)
