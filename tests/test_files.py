"""files: whole or not at all."""

import csv
import json
import threading

import pytest

from tf_isvae import files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("before", [None, "the old text"])
def test_a_failure_changes_nothing(tmp_path, before):
    path = tmp_path / "report.txt"
    if before:
        path.write_text(before)
    kept = names(tmp_path)
    with pytest.raises(RuntimeError, match="midway"), files.atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError("midway")
    assert names(tmp_path) == kept
    assert before is None or path.read_text() == before


def test_the_file_appears_at_the_end(tmp_path):
    path = tmp_path / "model.keras"
    with files.atomic_write(str(path)) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        # In the same folder, or it could not be renamed; hidden; with the suffix that tells writers the format.
        assert temporary.parent == tmp_path and temporary.name.startswith(".") and temporary.suffix == ".keras"
    assert names(tmp_path) == ["model.keras"] and path.read_text() == "whole"


def test_ctrl_c_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), files.atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), files.atomic_write(tmp_path / "a.txt"):
        pass
    assert names(tmp_path) == []


def test_a_folder_in_the_way_is_an_error(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OSError):
        files.write_json(tmp_path / "a.json", {})
    assert names(tmp_path) == ["a.json"]


def test_readers_never_see_half_a_file(tmp_path):
    """While a file is replaced again and again, it can be parsed at any moment."""
    path = tmp_path / "numbers.json"
    files.write_json(path, {"numbers": [0] * 5000})
    stop = threading.Event()

    def write():
        i = 0
        while not stop.is_set():
            i += 1
            files.write_json(path, {"numbers": [i] * 5000})

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(100):
            found = json.loads(path.read_text())["numbers"]
            assert len(found) == 5000 and len(set(found)) == 1
    finally:
        stop.set()
        writer.join()
    assert names(tmp_path) == ["numbers.json"]


@pytest.mark.parametrize("value", [{}, {"a": [1, 2.5, None, "ü"], "b": {"c": True}}])
def test_json(tmp_path, value):
    files.write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == value and text.endswith("}\n")


def test_what_json_cannot_hold_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "a.json", {"a": {1, 2}})
    assert names(tmp_path) == []


def test_csv(tmp_path):
    rows = [{"epoch": 1, "loss": 0.1 + 0.2, "name": 'a,"b"'}, {"epoch": 2, "loss": 1e-30, "name": "c\nd"}]
    files.write_csv(tmp_path / "a.csv", rows)
    with open(tmp_path / "a.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert [{**row, "epoch": int(row["epoch"]), "loss": float(row["loss"])} for row in read] == rows
    assert (tmp_path / "a.csv").read_bytes().startswith(b"epoch,loss,name\n")


def test_csv_with_different_columns_leaves_nothing(tmp_path):
    with pytest.raises(ValueError):
        files.write_csv(tmp_path / "a.csv", [{"a": 1}, {"b": 2}])
    assert names(tmp_path) == []


def test_csv_of_numbers_round_trips(tmp_path):
    rows = [{"epoch": 1.0, "loss": 0.1 + 0.2}, {"epoch": 2.0, "loss": float("inf")}]
    files.write_csv(tmp_path / "a.csv", rows)
    assert files.read_csv(tmp_path / "a.csv") == rows
