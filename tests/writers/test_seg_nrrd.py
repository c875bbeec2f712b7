""".seg.nrrd results have the fields that 3D Slicer reads."""

from __future__ import annotations

import SimpleITK as sitk  # noqa: N813  (the name its own manual uses)

from pipeline.writers.seg_nrrd import write_seg_nrrd
from tests.support.segmentations import save_source, segmentation_of


def test_a_seg_nrrd_has_slicers_fields(tmp_path):
    write_seg_nrrd(segmentation_of(save_source(tmp_path / "s.nii.gz")), tmp_path / "a.seg.nrrd")
    image = sitk.ReadImage(tmp_path / "a.seg.nrrd")
    field = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    assert (field["Segment0_Name"], field["Segment0_LabelValue"], field["Segment0_Layer"]) == ("liver", "1", "0")
    category = "SCT^91723000^Anatomical Structure"
    context = "TerminologyEntry:Segmentation category and type - DICOM master list"
    assert field["Segment0_Tags"] == f"{context}~{category}~SCT^10200004^Liver~^^~~^^~^^|"
    assert field["Segment1_Tags"] == f"{context}~{category}~SCT^64033007^Kidney~SCT^7771000^Left~~^^~^^|"
    assert field["Segment0_Extent"] == "0 2 0 2 0 2"
    assert field["Segment2_Name"] == "../../evil name"
    assert field["Segment4_Extent"] == "0 -1 0 -1 0 -1"
    assert len({field[f"Segment{n}_ID"] for n in range(5)}) == 5


def test_a_seg_nrrd_says_in_which_organ_an_abnormal_structure_lies(tmp_path):
    names = ("background", "liver", "liver_tumor", "kidney_cyst_left")
    write_seg_nrrd(segmentation_of(save_source(tmp_path / "s.nii.gz"), names), tmp_path / "a.seg.nrrd")
    image = sitk.ReadImage(tmp_path / "a.seg.nrrd")
    tumour, cyst = (image.GetMetaData(f"Segment{n}_Tags").split("~")[2:] for n in (1, 2))
    regions = "Anatomic codes - DICOM master list"
    assert tumour == ["SCT^108369006^Neoplasm", "^^", regions, "SCT^10200004^Liver", "^^|"]
    assert cyst == ["SCT^367643001^Cyst", "^^", regions, "SCT^64033007^Kidney", "SCT^7771000^Left|"]
