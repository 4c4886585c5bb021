"""Where the paper contradicts itself or leaves a symbol out. Its figures are kept as they are printed.

Found by reading the tables against one another and against the text. What is only left open, and how it is settled
here, is in `README.md` under Departures.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Inconsistency:
    """``where`` it stands in the paper, ``what`` does not fit, and how it is treated ``here``.

    ``rows``: the ids of the rows that it is about, if any.
    """

    where: str
    what: str
    here: str
    rows: tuple[str, ...] = ()


INCONSISTENCIES = (
    Inconsistency(
        where="Table 1, Faster R-CNN [22]",
        what="AP50 to APl (59.1, 42.3, 21.8, 42.7, 50.2) repeat the row of RetinaNet above it, though AP is 2.9 points "
        "lower (36.2 and 39.1): a slip in copying. Table 2 of [23], from which both rows come, has 59.1, 39.0, 18.2, "
        "39.0, 48.2.",
        here="Kept as printed.",
        rows=("table1/quoted_faster_rcnn_r101", "table1/quoted_retinanet_r101"),
    ),
    Inconsistency(
        where="Table 1, Grid R-CNN [28]",
        what="APs has two decimals (23.31), all other figures one.",
        here="Kept as printed.",
        rows=("table1/quoted_grid_rcnn_r101",),
    ),
    Inconsistency(
        where="Table 1, Deformable R-FCN [4]",
        what="Reference [4] is R-FCN; deformable convolutions are [5].",
        here="Kept as printed.",
        rows=("table1/quoted_deformable_rfcn",),
    ),
    Inconsistency(
        where="Table 1, caption",
        what='The numbers in brackets are called "relative improvement"; they are differences in points of AP.',
        here="They are stored as gains and equal the differences of the rows.",
    ),
    Inconsistency(
        where="Tables 2 and 4",
        what="Residual Feature Augmentation as the paper uses it (ASF, ratios 0.1, 0.2, 0.3) has APm 41.3 and APl 47.2 "
        "in Table 2, 41.1 and 47.4 in Table 4; the other four agree. Rows that Table 2 shares with Tables 3 and 5 "
        "agree in all six.",
        here="One run; each table shows its own published figures.",
        rows=("table2/rfa", "table4/asf_raap_0.1_0.2_0.3"),
    ),
    Inconsistency(
        where="Sections 3.1 and 4.4, Table 3",
        what="Section 3.1 has two weights in Equation 1, λ of the auxiliary loss and α between classification and "
        "localisation. Section 4.4 calls the weight that Table 3 varies α, though at 0 it switches the whole auxiliary "
        "loss off, which λ does. The ratios of Section 3.2 and Table 4 are α, too.",
        here="Table 3's second column is λ, on both auxiliary terms; α of Equation 1 is 1, as in the release.",
        rows=(
            "table3/none",
            "table3/single_level_1.2",
            "table3/single_level_1.0",
            "table3/single_level_0.5",
            "table3/single_level_0.25",
            "table3/all_level_0.5",
            "table3/all_level_0.25",
            "table3/all_level_0.125",
        ),
    ),
    Inconsistency(
        where="Section 4.4, Table 3",
        what='"All level" supervision is said to be better than "single level"; with the weight 0.5 both have AP 36.9, '
        "which is less than single level's 37.0 with 1.0.",
        here="True of the best of each (37.2 and 37.0).",
        rows=("table3/all_level_0.5", "table3/single_level_0.5", "table3/single_level_1.0"),
    ),
    Inconsistency(
        where="Section 4.4, Table 4",
        what="With one branch ASF is said not to be used (of global pooling); the row of the single ratio 0.1 is "
        "with ASF.",
        here="As the table has it: ASF weighs the one context by a map of its own.",
        rows=("table4/asf_raap_0.1",),
    ),
    Inconsistency(
        where="Section 4.4, Table 5",
        what="PANet's pooling is said to need 38.53 M parameters more. The weights of three layers of 12544 × 1024 are "
        "38,535,168, which rounds to 38.54 M.",
        here="Those layers, and their biases.",
        rows=("table5/panet_max",),
    ),
    Inconsistency(
        where="Equation 1",
        what="The original loss is summed over P2 to P5, yet p and d carry no level: an RoI has one prediction after "
        "the pyramid.",
        here="The box head's ordinary loss, once.",
    ),
)


def notes_of(id: str) -> list[int]:
    """The numbers, from 1, of the inconsistencies that a row is part of."""
    return [number for number, entry in enumerate(INCONSISTENCIES, start=1) if id in entry.rows]


def concerning(table: str) -> list[Inconsistency]:
    """Those that are about a table, such as "table3", or one of its rows.

    >>> [entry.where for entry in concerning("table2")]
    ['Tables 2 and 4']
    """
    name = table.replace("table", "Table ")
    return [
        entry
        for entry in INCONSISTENCIES
        if name in entry.where or any(id.startswith(f"{table}/") for id in entry.rows)
    ]


def as_markdown(entries: Iterable[Inconsistency]) -> str:
    """A list, for notebooks."""
    return "\n".join(f"- **{entry.where}.** {entry.what} *Here:* {entry.here}" for entry in entries)
