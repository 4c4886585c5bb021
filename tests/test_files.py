import pytest

from augfpn.errors import UserError
from augfpn.files import folder_written_whole


def write(folder, **files):
    with folder_written_whole(folder) as temporary:
        for name, text in files.items():
            (temporary / name).write_text(text)


def test_a_folder_takes_the_place_of_an_older_one_with_all_that_is_in_it(tmp_path):
    folder = tmp_path / "new" / "site"
    write(folder, a="1", b="1")
    write(folder, a="2")
    assert sorted(path.name for path in folder.iterdir()) == [".written-by-augfpn", "a"]
    assert (folder / "a").read_text() == "2"
    assert [path.name for path in folder.parent.iterdir()] == ["site"]
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", a="1")
    assert (tmp_path / "empty" / "a").read_text() == "1"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_writing_leaves_the_older_folder_as_it_was(tmp_path, error):
    write(tmp_path / "site", a="1")

    def fails():
        with folder_written_whole(tmp_path / "site") as temporary:
            (temporary / "a").write_text("2")
            raise error

    with pytest.raises(error):
        fails()
    assert (tmp_path / "site" / "a").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_an_interruption_between_the_two_renames_brings_the_older_folder_back(tmp_path, monkeypatch):
    write(tmp_path / "site", a="1")
    rename = type(tmp_path).rename

    def interrupted(self, target):
        if self.name.endswith(".tmp"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "site", a="2")
    assert (tmp_path / "site" / "a").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_what_is_somebody_elses_is_refused_and_stays(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a").write_text("mine")
    for path in (tmp_path / "notes", tmp_path / "notes" / "a"):
        with pytest.raises(UserError, match="was not made by this command"):
            write(path, a="1")
    assert (tmp_path / "notes" / "a").read_text() == "mine"
