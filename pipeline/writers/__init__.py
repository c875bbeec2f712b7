"""Segmentations as files: NIfTI, .seg.nrrd, DICOM SEG, colour table, preview picture."""
