"""NRRD and MetaImage files: as SimpleITK reads them, and headers that must be refused."""

from __future__ import annotations

import gzip
import os
import zlib

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  (the name its own manual uses)

from tests.support.volume_files import (
    itk_affine,
    itk_image,
    refused,
    volume,
)
from transforms.io.load import read_volume


@pytest.mark.parametrize("name", ["nrrd/brain1_image.nrrd", "nrrd/brain1_label.nrrd", "dicom_seg/liver_seg.nrrd"])
def test_real_nrrd_reads_as_in_simpleitk(shared_data, name):
    ours, theirs = read_volume(shared_data / name), sitk.ReadImage(str(shared_data / name))
    assert np.array_equal(ours.array, sitk.GetArrayFromImage(theirs).T)
    np.testing.assert_allclose(ours.affine, itk_affine(theirs), atol=1e-9)


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("a.nrrd", b"space: left-posterior-superior", b"space: scanner-xyz", ("left and right are unknown",)),
        ("a.nrrd", b"encoding: raw", b"encoding: bzip2", ("encoding",)),
        ("a.nrrd", b"type: short", b"type: block", ("number type",)),
        ("a.nrrd", b"sizes: 5 6 7", b"sizes: 5 6 x", ("sizes",)),
        ("a.nhdr", b"data file: a.raw", b"data file: ../a.raw", ("outside its own folder",)),
        ("a.mhd", b"ElementDataFile = a.raw", b"ElementDataFile = /etc/hostname", ("outside its own folder",)),
        ("a.mhd", b"ElementDataFile = a.raw", b"ElementDataFile = b.raw", ("missing",)),
        ("a.mhd", b"ElementDataFile = a.raw", b"ElementDataFile = LIST", ("one file",)),
        ("a.mha", b"ElementDataFile = LOCAL", b"ElementDataFile = a.mha", ("names itself",)),
        ("a.nrrd", b"encoding: raw", b"encoding: raw\ndata file: a.nrrd", ("names itself",)),
        ("a.mha", b"ElementSpacing", b"NoElementSpacing", ("voxel size is unknown",)),
        ("a.mha", b"ElementType = MET_SHORT", b"ElementType = MET_NOTHING", ("number type",)),
        ("a.mha", b"TransformMatrix = ", b"TransformMatrix = 0 0 0 0 0 0 0 0 0 ", ()),
    ],
)
def test_impossible_nrrd_and_metaimage_headers_are_refused(tmp_path, name, old, new, words):
    path = tmp_path / name
    sitk.WriteImage(itk_image(volume(), np.diag([1.0, 1, 1, 1])), str(path), useCompression=False)
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    refused(path, *words)


@pytest.mark.parametrize("name", ["short", "signed short", "short int", "signed short int", "int16", "int16_t"])
def test_all_spellings_of_a_number_type_are_read(tmp_path, name):
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(itk_image(volume(), np.diag([1.0, 1, 1, 1])), str(path), useCompression=False)
    expected = read_volume(path).array
    path.write_bytes(path.read_bytes().replace(b"type: short", f"type: {name}".encode(), 1))
    assert np.array_equal(read_volume(path).array, expected)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T, expected)


def nrrd_head(space: str) -> bytes:
    return (
        f"NRRD0004\ntype: short\ndimension: 3\nspace: {space}\nsizes: 5 6 7\n"
        "space directions: (0.8,0.1,0) (-0.1,0.9,0.2) (0,-0.2,2.5)\nspace origin: (10,20,30)\n"
        "endian: little\nencoding: raw\n\n"
    ).encode()


@pytest.mark.parametrize(
    ("space", "right", "front"),
    [
        ("right-anterior-superior", 1, 1),
        ("left-posterior-superior", -1, -1),
        ("left-anterior-superior", -1, 1),
        ("LAS", -1, 1),
    ],
)
def test_a_nrrd_lies_where_its_space_says(tmp_path, space, right, front):
    path = tmp_path / "a.nrrd"
    path.write_bytes(nrrd_head(space) + volume().tobytes(order="F"))
    found = read_volume(path)
    assert np.array_equal(found.array, volume())
    in_space = np.array([[0.8, -0.1, 0, 10], [0.1, 0.9, -0.2, 20], [0, 0.2, 2.5, 30], [0, 0, 0, 1]])
    np.testing.assert_allclose(found.affine, np.diag([right, front, 1, 1]) @ in_space, atol=1e-12)


META_HEAD = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = True\n{more}"
    "Offset = 0 0 0\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nElementSpacing = 1 1 1\nDimSize = 5 6 7\n"
    "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
)


def test_packed_metaimages_that_are_damaged_or_cut_short_are_refused(tmp_path):
    path, packed = tmp_path / "a.mha", zlib.compress(volume().tobytes(order="F"), 0)  # packed, but not changed

    def write(content: bytes, size: int) -> None:
        path.write_bytes(META_HEAD.format(more=f"CompressedDataSize = {size}\n").encode() + content)

    write(packed, len(packed))
    assert np.array_equal(read_volume(path).array, volume())
    damaged = bytearray(packed)
    damaged[len(packed) // 2] ^= 0x10
    write(bytes(damaged), len(packed))
    refused(path, "damaged")
    write(packed, len(packed) // 2)
    refused(path, "truncated")


def test_packed_metaimages_behind_a_header_of_another_size_are_refused_or_read(tmp_path):
    path, packed = tmp_path / "a.mhd", bytearray(16) + zlib.compress(volume().tobytes(order="F"), 0)
    head = META_HEAD.format(more=f"CompressedDataSize = {len(packed) - 16}\nHeaderSize = 16\n")
    path.write_text(head.replace("LOCAL", "a.zraw"))
    (tmp_path / "a.zraw").write_bytes(packed)
    assert np.array_equal(read_volume(path).array, volume())
    packed[len(packed) // 2] ^= 0x10
    (tmp_path / "a.zraw").write_bytes(packed)
    refused(path, "damaged")
    local = tmp_path / "b.mha"
    local.write_bytes(head.encode() + packed[16:])
    refused(local, "damaged")


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_packed_nrrds_are_read_in_one_or_two_pieces_and_refused_where_damaged(tmp_path, end):
    head = nrrd_head("LPS").replace(b"encoding: raw\n\n", b"encoding: gzip" + end)
    path, voxels = tmp_path / "a.nrrd", volume().tobytes(order="F")
    path.write_bytes(head + gzip.compress(voxels))
    assert np.array_equal(read_volume(path).array, volume())
    path.write_bytes(head + gzip.compress(voxels[:100]) + gzip.compress(voxels[100:]))
    assert np.array_equal(read_volume(path).array, volume())
    packed = bytearray(gzip.compress(voxels, 0))
    for at in range(12, len(packed), 7):
        damaged = packed.copy()
        damaged[at] ^= 0x10
        path.write_bytes(head + damaged)
        refused(path)


def test_packed_metaimages_without_their_length_are_refused(tmp_path):
    path, packed = tmp_path / "a.mha", zlib.compress(volume().tobytes(order="F"))
    for more in ("", "CompressedDataSize = 0\n"):
        path.write_bytes(META_HEAD.format(more=more).encode() + packed)
        refused(path, "CompressedDataSize")
    path.with_suffix(".mhd").write_text(META_HEAD.format(more="HeaderSize = 16\n").replace("LOCAL", "a.zraw"))
    (tmp_path / "a.zraw").write_bytes(bytes(16) + packed)
    refused(path.with_suffix(".mhd"), "CompressedDataSize")


@pytest.mark.parametrize("dtype", ["<i2", ">i2", ">f4", "<u4", "|u1"])
def test_packed_voxels_are_read_as_simpleitk_reads_them_in_either_byte_order_and_behind_what_is_skipped(
    tmp_path, dtype
):
    voxels, is_big = volume(dtype=dtype).tobytes(order="F"), dtype[0] == ">"
    name = {"i2": "short", "f4": "float", "u4": "unsigned int", "u1": "unsigned char"}[dtype[1:]]
    plain = nrrd_head("LPS").replace(b"endian: little", b"endian: BIG" if is_big else b"endian: little")
    plain = plain.replace(b"type: short", f"type: {name}".encode()).replace(b"encoding: raw\n", b"encoding: gzip\n{}")
    path, meta = tmp_path / "a.nrrd", tmp_path / "a.mha"
    for skips, before, content in (
        ("", b"", voxels + bytes(9)),
        ("line skip: 2\nbyte skip: 3\n", b"a\r\nb\n", bytes(3) + voxels + bytes(9)),
        ("byte skip: -1\n", b"", bytes(10**5) + voxels),
        ("byte skip: -10\n", b"", bytes(7) + voxels + bytes(9)),
    ):
        head = plain.replace(b"{}", skips.encode()) + before
        path.write_bytes(head + gzip.compress(content[:50]) + gzip.compress(content[50:]))
        found = read_volume(path).array
        assert np.array_equal(found, volume(dtype=dtype))
        assert np.array_equal(found, sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T)
        assert found.dtype.isnative
        assert found.flags.aligned
        packed = bytearray(gzip.compress(content, 0))
        packed[len(packed) - 8 - content[::-1].index(voxels[::-1]) - len(voxels) // 2] ^= 0x10
        path.write_bytes(head + packed)
        refused(path, "damaged")
    head = META_HEAD.replace("MET_SHORT", "MET_" + name.upper().replace("UNSIGNED ", "U"))
    head = head.replace("CompressedData = True", "CompressedData = T")
    for field in ("BinaryDataByteOrderMSB = False\n", "ElementByteOrderMSB = False\n"):
        more = f"CompressedDataSize = {len(zlib.compress(voxels))}\n" + field.replace("False", str(is_big))
        own = head.replace("BinaryDataByteOrderMSB = False\n", "").format(more=more)
        meta.write_bytes(own.encode() + zlib.compress(voxels))
        found = read_volume(meta).array
        assert np.array_equal(found, sitk.GetArrayFromImage(sitk.ReadImage(str(meta))).T)
        assert np.array_equal(found, volume(dtype=dtype))


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_a_name_that_is_no_utf_8_is_refused_where_simpleitk_would_end_the_process(tmp_path, ending):
    path = tmp_path / os.fsdecode(b"M\xfcller." + ending.encode())
    sitk.WriteImage(itk_image(volume(), np.eye(4)), tmp_path / f"a.{ending}")
    (tmp_path / f"a.{ending}").rename(path)
    refused(path, "expected a path whose names are UTF-8")
