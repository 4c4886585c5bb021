import json

from augfpn.engine.runs import keep


def test_what_is_kept_has_its_provenance_and_null_in_the_place_of_nan(tmp_path):
    nan = float("nan")
    path = keep(str(tmp_path / "new" / "result.json"), {"AP": nan, "levels": [{"shares": (0.5, nan)}]})
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content.pop("provenance")["packages"]["torch"]
    assert content == {"AP": None, "levels": [{"shares": [0.5, None]}]}


def test_nothing_is_kept_where_no_file_is_named():
    assert keep(None, {"AP": 0.5}) is None


def test_what_a_notebook_measures_does_not_name_its_kernels_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/ipykernel_launcher.py", "-f", "/tmp/kernel.json"])
    path = keep(str(tmp_path / "result.json"), {})
    assert json.loads(path.read_text(encoding="utf-8"))["provenance"]["command"] == "in a notebook"
