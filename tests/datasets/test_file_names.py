"""What names of image and label files say."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.datasets.file_names import case_of, image_keys, label_key, labels_beside_images


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("volume-12", "segmentation-12"),
        ("img0001", "label0001"),
        ("P1 CT", "P1 mask"),
        ("c_MR", "c.gt"),
        ("ct_train_1001_image", "ct_train_1001_label"),  # MM-WHS
        ("volume-covid19-A-0003_ct", "volume-covid19-A-0003_seg"),  # COVID-19-20
        ("img_1_ct", "label_1_ct"),
    ],
)
def test_image_and_label_of_a_case_have_one_key(image, label):
    assert label_key(label) in image_keys(image)
    assert image not in image_keys(image)


@pytest.mark.parametrize("name", ["liver", "segment", "labelled", "ctr", "octopus", "seg", "t12", "T2001", "t1"])
def test_words_that_only_begin_alike_say_nothing(name):
    assert [case_of(name), label_key(name)] == [*image_keys(name), name] == [name, name]


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (["c0/imaging"], ["c0/aggregated_MAJ_seg", "c0/segmentations/kidney_instance-1_annotation-1"]),  # KiTS21
        (["rawdata/sub-1/sub-1_ct"], ["derivatives/sub-1/sub-1_seg-vert_msk"]),  # VerSe
        (["sub-1/ses-1/dwi/sub-1_ses-1_adc"], ["derivatives/sub-1/ses-1/sub-1_ses-1_msk"]),  # ISLES22
        (["sub-1/anat/sub-1_T1w"], ["derivatives/labels/sub-1/anat/sub-1_T1w_lesion-manual"]),  # BIDS, of spines
        (["sub-1/anat/sub-1_T1w", "derivatives/fmriprep/sub-1/anat/sub-1_desc-preproc_T1w"], []),
        (["GT_01/GT_01_ct", "c_seg/ct", "mask_T1", "segment"], []),
        (["c0/ct"], ["c0/MASKS/liver"]),
    ],
)
def test_label_maps_are_told_from_the_images_that_they_lie_beside(images, labels):
    root = Path("labels")  # the folder that a user names says nothing
    paths = [root / f"{name}.nii.gz" for name in (*labels, *images)]
    assert labels_beside_images(paths, root) == paths[: len(labels)]
    assert labels_beside_images(paths[: len(labels)], root) == []
