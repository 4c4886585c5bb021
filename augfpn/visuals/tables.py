"""Tables as notebooks show them."""

from __future__ import annotations

from collections.abc import Hashable

import pandas as pd
from pandas.io.formats.style import Styler

_COUNTS = ("seed", "seeds", "step")


def shown(table: pd.DataFrame, decimals: int = 1) -> Styler:
    """A table with its figures rounded, counts without decimals, and a dash where there is nothing.

    An index that only numbers the rows is left out.
    """
    counts: list[Hashable] = [name for name in table.columns if name in _COUNTS]
    style = table.style.format(precision=decimals, na_rep="–").format(precision=0, na_rep="–", subset=counts)
    return style.hide() if table.index.name is None else style
