"""Tables as notebooks show and keep them."""

from __future__ import annotations

import json
from collections.abc import Hashable
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

_COUNTS = ("seed", "seeds", "step")


def shown(table: pd.DataFrame, decimals: int = 1) -> Styler:
    """A table with its figures rounded, counts without decimals, and a dash where there is nothing.

    Names of classes and of folders are text, whatever tags they have. An index that only numbers the rows is left out.
    """
    counts: list[Hashable] = [name for name in table.columns if name in _COUNTS]
    style = table.style.format(precision=decimals, na_rep="–", escape="html")
    style = style.format(precision=0, na_rep="–", escape="html", subset=counts)
    style = style.format_index(escape="html", axis=0).format_index(escape="html", axis=1)
    return style.hide() if table.index.name is None else style


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A dictionary for each row, as JSON can have it: None where there is nothing, counts as whole numbers.

    An index that has a name is a column; one that only numbers the rows is left out.
    """
    named = table if table.index.name is None else table.reset_index()
    counts = {name: "Int64" for name in named.columns if name in _COUNTS}
    rows: list[dict[str, Any]] = json.loads(named.astype(counts).to_json(orient="records", double_precision=15))
    return rows
