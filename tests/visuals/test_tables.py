import json

import pandas as pd

from augfpn.visuals.tables import records, shown


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


def test_names_with_tags_are_shown_as_text():
    evil = "<img src=x onerror=alert(1)>"
    table = pd.DataFrame({evil: [evil], "AP": [50.0], "seed": [0]}, index=pd.Index([evil], name="class"))
    html = shown(table).to_html()
    assert "<img" not in html
    assert html.count("&lt;img src=x onerror=alert(1)&gt;") == 3
    assert ">50.0<" in html
    assert ">0<" in html
