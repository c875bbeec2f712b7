"""Segment scans that are in memory, without files: `Segmenter(run)(array, affine) -> labels`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Shaped
from numpy.typing import NDArray

from pipeline.compute.devices import choose_device, choose_precision
from pipeline.inference.model import load_models, shared_label_values
from pipeline.inference.passes import InferenceOptions, choose_mirrored, prepare_array, refuse_window, scan_features
from pipeline.writers.segmentation import values_of
from transforms.io.grid import Affine
from transforms.restore import restore

log = logging.getLogger(__name__)


class Segmenter:
    """One trained network, or several whose probabilities are averaged, loaded once for any number of scans.

    What it returns for a scan is what `pipeline.predict.predict` writes for the same scan as a file.

    Args:
        runs: a run folder or best_model.ckpt file, or several.
        device: "auto", "cpu", "cuda" or "cuda:N".
        tta: axes (of "xyz") along which scans are also shown mirrored; "auto" takes those of the training.
        inference: windows and precision; its `mirrored` is `tta`'s.
        class_indices: return the class indices 0, 1, 2, … instead of the values of the training's label files.
        trust: import network classes from outside the registry's allow-list; their package's code then runs.

    Raises:
        NetworkError: a checkpoint that cannot be used, or networks that cannot be joined. ConfigError: the device.
        SegmentationError: networks whose trainings write the same classes with different values.
    """

    def __init__(
        self,
        runs: Path | str | Sequence[Path | str],
        *,
        device: str = "auto",
        tta: str = "",
        inference: InferenceOptions | None = None,
        class_indices: bool = False,
        trust: bool = False,
    ) -> None:
        inference = inference or InferenceOptions()
        chosen = choose_device(device)
        choose_precision(inference.precision, chosen)
        self._models = load_models([runs] if isinstance(runs, Path | str) else runs, chosen, trust=trust)
        self._inference = replace(inference, mirrored=choose_mirrored(tta, self._models))
        refuse_window(self._models, self._inference)
        values = () if class_indices else shared_label_values(self._models)
        self._values = values_of(self.class_names, values)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, background first."""
        return self._models[0].class_names

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The image channels that a scan must have, in this order."""
        return self._models[0].channel_names

    @property
    def values(self) -> dict[str, int]:
        """The value that voxels of each class have in the result."""
        return dict(zip(self.class_names, self._values.tolist(), strict=True))

    def __call__(
        self, array: Shaped[np.ndarray, "*channel i j k"], affine: Affine, modality: str = ""
    ) -> NDArray[np.integer]:
        """Segment a scan on its own voxels.

        Args:
            array: (I, J, K), or (C, I, J, K) with the channels in the order of `channel_names`; CT in HU.
            affine: 4×4, voxel index -> world mm, RAS+, as nibabel has it.
            modality: "CT", "MR" or "" where that is not known; a scan that is unlike the training's is logged.

        Returns:
            (I, J, K) of `values`.

        Raises:
            VolumeError: an impossible array or affine. NetworkError: other channels, or a result that is NaN.
            RestoreError: a grid that cannot be restored.
        """
        prepared = prepare_array(self._models, array, affine, modality)
        for text in prepared.warnings:
            log.warning("%s", text)
        grid = (np.shape(array)[-3:], np.asarray(affine, np.float64))
        features = [
            scan_features(model, network_input, self._inference, grid)
            for model, network_input in zip(self._models, prepared.inputs, strict=True)
        ]
        return self._values[restore(features, *grid).segmentation]
