import json

import pandas as pd

from augfpn.visuals.tables import records


def test_records_are_what_json_can_have():
    table = pd.DataFrame(
        {"method": ["FPN", "CS"], "seed": [0, None], "AP": [53.25, float("nan")], "gain": [None, None]}
    )
    rows = records(table)
    assert json.dumps(rows, allow_nan=False) == json.dumps(
        [
            {"method": "FPN", "seed": 0, "AP": 53.25, "gain": None},
            {"method": "CS", "seed": None, "AP": None, "gain": None},
        ]
    )


def test_a_named_index_is_a_column_of_the_records():
    assert records(pd.DataFrame({"gain": [0.5]}, index=pd.Index(["CS"], name="method"))) == [
        {"method": "CS", "gain": 0.5}
    ]
    assert records(pd.DataFrame(columns=["method", "seeds"]).set_index("method")) == []
