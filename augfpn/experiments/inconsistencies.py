"""Where the paper contradicts itself or leaves a symbol out. Its figures are kept as they are printed.

Found by reading the tables against one another and against the text. What is only left open, and how it is settled
here, is in `README.md` under Departures.
"""

from __future__ import annotations

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
        "lower (36.2 and 39.1): a slip in copying.",
        here="Kept as printed. Of this row only AP can be relied on.",
        rows=("table1/quoted_faster_rcnn_r101", "table1/quoted_retinanet_r101"),
    ),
    Inconsistency(
        where="Table 1, Grid R-CNN [28]",
        what="APs has two decimals (23.31), all other figures one.",
        here="Kept as printed.",
        rows=("table1/quoted_grid_rcnn_r101",),
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
        where="Equation 1, Sections 3.1, 4.2 and 4.4, Table 3",
        what="The text defines λ (of the auxiliary loss) and α (between classification and localisation), "
        'but the equation has neither. Section 4.2 says "In Equ. 1 is set as 0.25" without a symbol, and Section 4.4 '
        "calls what Table 3 varies α, though it switches the whole auxiliary loss off at 0. α is also the name of the "
        "ratios in Section 3.2 and Table 4.",
        here="λ weighs both auxiliary terms, α is 1, as in the release. Table 3's second column is λ.",
        rows=(
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
        where="Equation 1",
        what="The original loss is summed over P2 to P5, yet p and d carry no level: an RoI has one prediction after "
        "the pyramid.",
        here="The box head's ordinary loss, once.",
    ),
)


def notes_of(id: str) -> list[int]:
    """The numbers, from 1, of the inconsistencies that a row is part of."""
    return [number for number, entry in enumerate(INCONSISTENCIES, start=1) if id in entry.rows]
