"""Which files a case becomes: masks as TotalSegmentator has them, inputs never overwritten."""

from __future__ import annotations

import pytest

from pipeline.writers.nifti import write_nifti
from pipeline.writers.outputs import OutputOptions, check_no_source_is_overwritten, write_files
from pipeline.writers.seg_nrrd import write_seg_nrrd
from pipeline.writers.segmentation import SegmentationError
from tests.support.segmentations import NAMES, save_source, segmentation_of


def test_every_structure_becomes_a_mask_as_totalsegmentator_has_them(tmp_path):
    segmentation = segmentation_of(save_source(tmp_path / "s.nii.gz"))
    options = OutputOptions(tmp_path / "out", NAMES, (), per_structure=True)
    write_files(segmentation, options.files("case"), probabilities={})
    found = sorted(path.name for path in (tmp_path / "out" / "case" / "segmentations").iterdir())
    assert found == sorted(
        f"{n}.nii.gz" for n in ("liver", "kidney_left", "evil_name", "kidney_left_2", "Kidney_Left_3")
    )
    assert [path.name for path in tmp_path.iterdir() if "evil" in path.name] == []


def test_an_output_never_overwrites_an_input(tmp_path):
    source = save_source(tmp_path / "case.nii.gz")
    with pytest.raises(SegmentationError, match="is an input"):
        check_no_source_is_overwritten({"case": [source]}, OutputOptions(tmp_path, NAMES))


def test_equal_segmentations_are_equal_files(tmp_path):
    segmentation = segmentation_of(save_source(tmp_path / "source.nii.gz"))
    for write, suffix in [(write_nifti, ".nii.gz"), (write_seg_nrrd, ".seg.nrrd")]:
        write(segmentation, tmp_path / f"a{suffix}")
        write(segmentation, tmp_path / f"b{suffix}")
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
