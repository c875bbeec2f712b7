"""CSV tables: columns, separators, rows that do not fit."""

from __future__ import annotations

import pytest

from pipeline.datasets.csv_table import read_csv
from pipeline.datasets.errors import DatasetError


@pytest.mark.parametrize("separator", [",", ";", "|"])
def test_cells_come_by_the_name_of_their_column(tmp_path, separator):
    path = tmp_path / "cases.csv"
    path.write_text(f"﻿Case{separator} Image \n\n a {separator}x.nii\n")
    ((line, cells),) = read_csv(path)
    assert cells == {"case": "a", "image": "x.nii"}
    assert line == 3


def test_a_row_of_another_length_is_named(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text("case,image\none\n")
    with pytest.raises(DatasetError, match=r"cases\.csv: expected 2 columns in row 2, found 1; "):
        read_csv(path)


def test_a_file_that_is_not_text_is_named(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_bytes(b'"\x00\xff')
    with pytest.raises(DatasetError, match=r"cases\.csv: expected a CSV table, found one that cannot be read as CSV"):
        read_csv(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_the_encodings_of_spreadsheets_are_read(tmp_path, encoding):
    path = tmp_path / "cases.csv"
    path.write_bytes("case\timage\r\nMüller\tx.nii\r\n".encode(encoding))
    ((line, cells),) = read_csv(path)
    assert (line, cells) == (2, {"case": "Müller", "image": "x.nii"})


def test_separators_at_the_end_and_columns_without_a_name_are_passed_over(tmp_path):
    path = tmp_path / "cases.csv"
    path.write_text(",case,image,,\n0,a,x.nii,,\n1,b,y.nii\n,,,,\n")
    assert [cells for _, cells in read_csv(path)] == [{"case": "a", "image": "x.nii"}, {"case": "b", "image": "y.nii"}]
    path.write_text("case,image\na,x.nii,,\nb,y.nii,more\n")
    with pytest.raises(DatasetError, match="2 columns in row 3, found 3"):
        read_csv(path)


@pytest.mark.parametrize("in_front", ["sep=;\n", "# my cases\n\n# of 2026\n", "# a,b,c,d\r\nsep=;\r\n"])
def test_what_excel_or_people_write_in_front_is_passed_over(tmp_path, in_front):
    path = tmp_path / "cases.csv"
    path.write_bytes(f"{in_front}case;image\na;x,y.nii\n".encode())
    assert [cells for _, cells in read_csv(path)] == [{"case": "a", "image": "x,y.nii"}]
