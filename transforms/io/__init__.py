"""Read volumes: NIfTI, NRRD, MetaImage, DICOM."""
