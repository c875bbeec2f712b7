"""The text headers of NRRD and MetaImage are read as ITK reads them, or refused."""

from __future__ import annotations

import os

import numpy as np
import pytest

from tests.support.volume_files import (
    volume,
)
from transforms.io.errors import VolumeError
from transforms.io.load import read_volume

META_HEAD = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nOffset = 0 0 0\n"
    "TransformMatrix = 1 0 0 0 1 0 0 0 1\nElementSpacing = 1 1 1\nDimSize = 5 6 7\nElementType = MET_SHORT\n"
)


NRRD_HEAD = (
    "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 5 6 7\n"
    "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nendian: little\nencoding: raw\n"
)


def remarks(ending: str) -> str:
    return "".join(f"Remark{n} = {'x' * 100}\n" for n in range(12000)) + ending


@pytest.mark.fault(
    "NRRD and MetaImage headers that ITK reads in another way than we do, so that it takes voxels from elsewhere",
    "refused in one line, nothing is read",
)
@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("a.mha", "elementdatafile = LOCAL\n\nElementDataFile = {secret}\n"),
        ("a.mha", "elementdatafile = LOCAL\nElementDataFile = {secret}\n"),
        ("a.mhd", "elementdatafile = inside.raw\n\nElementDataFile = ../secret.raw\n"),
        ("a.mha", remarks("elementdatafile = LOCAL\n\nElementDataFile = {secret}\n")),
        ("a.mha", "elementdatafile = LOCAL\n" + remarks("ElementDataFile = {secret}\n")),
        ("a.mha", "Comment =\nElementDataFile = LOCAL\nElementDataFile = {secret}\n"),
        ("a.mha", "Remark\nElementDataFile = LOCAL\nElementDataFile = {secret}\n"),
        ("a.mha", "ElementDataFile = = {secret}\n"),
        ("a.mha", "ElementDataFile = LoCaL\n"),
        ("a.mha", "ElementDataFile = é.raw\n"),
        ("a.mha", "ElementDataFile = ~.raw\n"),
        pytest.param(
            *("a.mhd", "ElementDataFile = unreadable.raw\n"),
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file"),
        ),
        ("a.nrrd", "# x\rdata file: {secret}\n\n"),
        ("a.nrrd", "data file: inside.raw\ndatafile: {secret}\n\n"),
        ("a.nhdr", "data file: inside.raw \n\n"),
        ("a.nhdr", " \ndata file: {secret}\n\n"),
    ],
)
def test_no_header_brings_voxels_from_outside_its_folder(tmp_path, monkeypatch, name, end):
    folder, secret = tmp_path / "data", tmp_path / "secret.raw"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)  # where a name that begins with "~" is looked for
    volume().tofile(secret)
    inside = np.zeros((5, 6, 7), np.int16).tobytes()
    (folder / "= " / str(tmp_path)[1:]).mkdir(parents=True)
    for own in ("inside.raw", "~.raw", f"= {secret}", "Ã©.raw"):
        (folder / own).write_bytes(inside)
    for link in ("inside.raw ", "LoCaL", "é.raw", "unreadable.raw.gz"):
        (folder / link).symlink_to(secret)
    (tmp_path / "~.raw").symlink_to(secret)
    unreadable = folder / "unreadable.raw"
    unreadable.write_bytes(inside)
    unreadable.chmod(0)
    head = META_HEAD if name.startswith("a.mh") else NRRD_HEAD
    (folder / name).write_bytes((head + end.replace("{secret}", str(secret))).encode() + inside)
    with pytest.raises(VolumeError, match=name):
        read_volume(folder / name)
