"""Kinds of bad volume files: headers that lie, archives that unpack without end, pipes, pickles."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np

from tests.support.hostile import Bomb, Row, listed
from tests.support.volumes import edit_header, write_series


def scan(content: bytes, name: str) -> list[str]:
    """Check a list whose second image has this content; whatever it claims is found out by opening it."""
    Path(name).write_bytes(content)
    return listed(image=name)


def nrrd(
    sizes: str = "16 14 12", more: str = "", encoding: str = "raw", directions: str = "(2,0,0) (0,2,0) (0,0,3)"
) -> bytes:
    head = (
        f"NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: {sizes}\n"
        f"space directions: {directions}\nspace origin: (0,0,0)\nendian: little\nencoding: {encoding}\n{more}\n"
    )
    return head.encode() + bytes(2 * 16 * 14 * 12)


def mha(sizes: str = "16 14 12", spacing: str = "2 2 3", axes: str = "3", data: str = "LOCAL", more: str = "") -> bytes:
    head = (
        f"ObjectType = Image\nNDims = {axes}\nBinaryData = True\nBinaryDataByteOrderMSB = False\n{more}"
        f"TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = {spacing}\nDimSize = {sizes}\n"
        f"ElementType = MET_SHORT\nElementDataFile = {data}\n"
    )
    return head.encode() + bytes(2 * 16 * 14 * 12)


def nifti(**fields: object) -> list[str]:
    edit_header(Path("data/imagesTr/b_0000.nii.gz"), **fields)
    return ["check", "data", "--no_measure"]


def endless(path: str, head: bytes, n_megabytes: int = 512) -> None:
    """Write gzip that begins with `head` and goes on with zeros, in members, of which a stream may have many."""
    zeros = gzip.compress(bytes(2**24))
    with Path(path).open("wb") as file:
        file.write(gzip.compress(head))
        for _ in range(n_megabytes // 16):
            file.write(zeros)


def gzip_bomb() -> list[str]:
    path = "data/imagesTr/b_0000.nii.gz"
    endless(path, gzip.decompress(Path(path).read_bytes()))
    return ["check", "data", "--no_measure"]


def dicom_slices(**changes: object) -> list[str]:
    import pydicom

    write_series(Path("series"), [0, 3, 6])
    for path in Path("series").iterdir():
        part = pydicom.dcmread(path)
        for field, value in changes.items():
            setattr(part, field, value)
        part.save_as(path)
    return listed(image="series")


def numpy_bomb(name: str) -> list[str]:
    with Path(name).open("wb") as file:
        np.savez(file, image=np.array([Bomb()], dtype=object))
    return listed(image=name)


def pipe() -> list[str]:
    Path("data/imagesTr/b_0000.nii.gz").unlink()
    os.mkfifo("data/imagesTr/b_0000.nii.gz")
    return ["check", "data", "--no_measure"]


ROWS = [
    Row(
        "a NIfTI header of 10^12 voxels",
        lambda: nifti(dim=[3, 10000, 10000, 10000, 1, 1, 1, 1]),
        ("case b", "a header that claims 1e+12 voxels"),
    ),
    Row("a NIfTI header of a voxel size 0", lambda: nifti(srow_x=[0, 0, 0, 0]), ("case b", "singular")),
    Row(
        "a NIfTI header of a negative voxel size",
        lambda: nifti(sform_code=0, pixdim=[1, 2, -2, 3, 0, 0, 0, 0]),
        ("case b", "positive spacing"),
    ),
    Row("a NIfTI header of voxels far behind", lambda: nifti(vox_offset=2.0**31), ("case b", "vox_offset 2.14748e+09")),
    Row("a gzip bomb", gzip_bomb, ("case b", "bytes of voxels that its header claims")),
    Row(
        "a NRRD header of 10^12 voxels",
        lambda: scan(nrrd("10000 10000 10000"), "b.nrrd"),
        ("case b", "a header that claims 1e+12 voxels"),
    ),
    Row(
        "a NRRD header of a voxel size 0",
        lambda: scan(nrrd(directions="(0,0,0) (0,2,0) (0,0,3)"), "b.nrrd"),
        ("case b", "singular"),
    ),
    Row(
        "a NRRD header that names another file",
        lambda: scan(nrrd(more="data file: /etc/hostname\n"), "b.nrrd"),
        ("case b", "outside its own folder"),
    ),
    Row(
        "a NRRD header that says its sizes twice",
        lambda: scan(nrrd(more="sizes: 1 1 1\n"), "b.nrrd"),
        ("case b", "sizes once in the header", "it twice"),
    ),
    Row(
        "a NRRD header without an orientation",
        lambda: scan(nrrd().replace(b"space", b"sp4ce"), "b.nrrd"),
        ("case b", "left and right are unknown"),
    ),
    Row(
        "a MetaImage header of 10^12 voxels",
        lambda: scan(mha("10000 10000 10000"), "b.mha"),
        ("case b", "a header that claims 1e+12 voxels"),
    ),
    Row(
        "a MetaImage header of a voxel size 0",
        lambda: scan(mha(spacing="0 2 3"), "b.mha"),
        ("case b", "a positive voxel size"),
    ),
    Row(
        "a MetaImage header of a negative voxel size",
        lambda: scan(mha(spacing="2 -2 3"), "b.mha"),
        ("case b", "a positive voxel size"),
    ),
    Row(
        "a MetaImage header of 3 000 000 000 axes",
        lambda: scan(mha(axes="3000000000"), "b.mha"),
        ("case b", "3000000000"),
    ),
    Row(
        "a MetaImage header that names another file",
        lambda: scan(mha(data="../../etc/hostname"), "b.mha"),
        ("case b", "outside its own folder"),
    ),
    Row(
        "a MetaImage whose packed size is a lie",
        lambda: scan(mha(more="CompressedData = True\nCompressedDataSize = 99999999999\n"), "b.mha"),
        ("case b", "99999999999 bytes, as the header claims"),
    ),
    Row(
        "a DICOM slice of 60000 × 60000 pixels",
        lambda: dicom_slices(Rows=60000, Columns=60000),
        ("case b", "60000×60000 pixels"),
    ),
    Row(
        "a DICOM slice with fewer pixels than it claims",
        lambda: dicom_slices(Rows=500),
        ("case b", "16000 bytes of pixels"),
    ),
    Row("a DICOM slice of a negative pixel size", lambda: dicom_slices(PixelSpacing=[-2, 2]), ("case b", "spacing")),
    Row(
        "a named pipe in the place of an image",
        pipe,
        ("case b", "a pipe or device", "data/imagesTr/b_0000.nii.gz"),
    ),
    Row(
        "a pickle in the place of an image",
        lambda: numpy_bomb("b.npz"),
        ("case b", "a file named b.npz", "one of .nii.gz"),
    ),
]
