"""The preview shows the structures where they are."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from matplotlib import image as mpl_image

from pipeline.writers.preview import PreviewImage, write_preview
from pipeline.writers.segmentation import Segmentation
from transforms.chains import inference_chain


def test_the_preview_shows_the_patients_right_on_the_left_and_the_structures_where_they_are(tmp_path):
    label = np.zeros((40, 40, 40), np.uint8)
    label[4:16, 4:16, 22:38] = 1  # i runs to the left, j to the front, k to the feet
    affine = np.diag([-2.0, 2.0, -2.0, 1.0])
    path = tmp_path / "ct.nii.gz"
    nib.save(nib.Nifti1Image(label.astype(np.int16) * 500, affine), path)
    image = inference_chain((20, 20, 20))({"image": str(path), "case": "x"})["image"]
    segmentation = Segmentation(label, affine, ("background", "liver"), path, "nifti")
    picture = PreviewImage(image[0].numpy(), image.affine.numpy())
    write_preview(segmentation, picture, tmp_path / "a.png")
    picture = mpl_image.imread(tmp_path / "a.png")[..., :3]
    coloured = np.ptp(picture, axis=2) > 0.2  # all the rest is grey
    third = picture.shape[1] // 3
    centres = [np.argwhere(part).mean(0) / part.shape for part in np.split(coloured[:, : 3 * third], 3, axis=1)]
    # (from the top, from the left): the structure lies towards the patient's right, back and feet.
    for down, across in centres:
        assert down > 0.55
        assert across < 0.45
