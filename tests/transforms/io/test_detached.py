"""Which files hold a volume, and that no header fetches voxels from elsewhere."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  (the name its own manual uses)

from tests.support.volume_files import OBLIQUE, itk_image, save, volume, write_series
from transforms.io.detached import beside, files_behind
from transforms.io.errors import VolumeError


@pytest.mark.parametrize(
    ("name", "files"),
    [("a.nhdr", ["a.nhdr", "a.raw"]), ("a.mhd", ["a.mhd", "a.raw"]), ("a.nrrd", ["a.nrrd"]), ("a.mha", ["a.mha"])],
)
def test_the_files_of_a_volume_are_those_that_itk_writes(tmp_path, name, files):
    sitk.WriteImage(itk_image(volume(), OBLIQUE), str(tmp_path / name))
    (tmp_path / "other.raw").write_bytes(b"x")
    assert [path.name for path in files_behind(tmp_path / name)] == files


def test_both_halves_of_a_nifti_pair_count_and_all_files_of_a_series(tmp_path):
    nib.save(nib.Nifti1Pair(volume(), OBLIQUE), tmp_path / "a.img")
    for half in ("a.img", "a.hdr"):
        assert {path.name for path in files_behind(tmp_path / half)} == {"a.img", "a.hdr"}
    assert files_behind(save(tmp_path / "b.nii", volume())) == [tmp_path / "b.nii"]
    write_series(tmp_path / "series", n=3)
    assert len(files_behind(tmp_path / "series")) == 3


@pytest.mark.parametrize("end", ["ElementDataFile = LIST\na.raw\n", "ElementDataFile = a%d.raw 1 3 1\n", "nonsense\n"])
def test_all_that_lies_beside_a_header_counts_where_it_names_no_file(tmp_path, end):
    (tmp_path / "a.mhd").write_text(f"ObjectType = Image\n{end}")
    for name in ("a.raw", "b.raw"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in files_behind(tmp_path / "a.mhd")] == ["a.mhd", "a.raw", "b.raw"]


@pytest.mark.parametrize("name", ["/etc/hostname", "../a.raw", "C:\\a.raw", "sub\\..\\..\\a.raw", "", "a\0.raw"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    (tmp_path.parent / "a.raw").write_bytes(b"x")
    with pytest.raises(VolumeError, match="outside its own folder") as error:
        beside(tmp_path / "a.mhd", name)
    assert error.value.kind == "outside_folder"


def test_a_link_is_followed_only_where_it_stays(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.raw").write_bytes(b"x")
    np.zeros(3, np.uint8).tofile(tmp_path / "data/own.raw")
    (tmp_path / "data/link.raw").symlink_to("own.raw")
    (tmp_path / "data/out.raw").symlink_to(tmp_path / "secret.raw")
    header = tmp_path / "data/a.mhd"
    assert beside(header, "link.raw") == tmp_path / "data/link.raw"
    with pytest.raises(VolumeError, match="leads out of its folder"):
        beside(header, "out.raw")
    with pytest.raises(VolumeError, match=r"data file none\.raw in the same folder") as error:
        beside(header, "none.raw")
    assert error.value.kind == "missing_file"


def test_what_reads_no_slice_of_a_series_is_none_of_its_files(tmp_path):
    write_series(tmp_path / "series", n=3)
    (tmp_path / "series" / "more").mkdir()
    (tmp_path / "series" / "more" / "report.txt").write_text("x")
    (tmp_path / "series" / ".#lock").symlink_to(tmp_path / "nowhere")
    assert len(files_behind(tmp_path / "series")) == 3
