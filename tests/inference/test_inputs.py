"""Which scans are to be segmented: all that lie there, none of our own results, and nothing is missing in silence."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  (the name its own manual uses)

from pipeline.datasets.errors import DatasetError
from pipeline.inference.inputs import InputCase, list_inputs, list_volumes
from pipeline.writers.segmentation import SegmentationError
from tests.support.nobody import Nobody
from tests.support.volumes import write_series
from transforms.io.errors import VolumeError
from transforms.io.load import read_geometry


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4)), path)
    return path


def ids(cases: tuple[InputCase, ...]) -> list[str]:
    return [case.id for case in cases]


@pytest.fixture
def readable_by_all():
    """A folder that any user may enter; pytest's own are the user's who runs it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_folder_that_a_link_fetches_is_refused_by_name_or_followed(tmp_path):
    save(tmp_path / "elsewhere" / "deep" / "b.nii.gz")
    save(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "in" / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(VolumeError, match=r"in/more: .* a link that leads out of .*--follow_links"):
        list_inputs([tmp_path / "in"])
    assert ids(list_inputs([tmp_path / "in"], follow_links=True)) == ["a", "more_deep_b"]


def test_links_in_circles_and_within_the_tree_give_every_volume_once(tmp_path):
    save(tmp_path / "in" / "a" / "ct.nii.gz")
    (tmp_path / "in" / "a" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "again").symlink_to("a")
    assert ids(list_inputs([tmp_path / "in"])) == ["a_ct"]
    (tmp_path / "one").mkdir()
    save(tmp_path / "two" / "mr.nii.gz")
    (tmp_path / "one" / "other").symlink_to(tmp_path / "two")
    (tmp_path / "two" / "other").symlink_to(tmp_path / "one")
    (tmp_path / "in" / "z").symlink_to(tmp_path / "one")
    assert ids(list_inputs([tmp_path / "in"], follow_links=True)) == ["a_ct", "z_other_mr"]


def test_links_to_nothing_are_failed_inputs(tmp_path):
    save(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "in" / "case").symlink_to(tmp_path / "unmounted")
    (tmp_path / "in" / "itself.nii.gz").symlink_to("itself.nii.gz")
    found = {case.id: case.error for case in list_inputs([tmp_path / "in"])}
    assert found.keys() == {"a", "case", "itself"}
    assert "unmounted, which is gone" in found["case"]


def test_what_cannot_be_accessed_is_a_failed_input_and_the_others_are_listed(readable_by_all):
    save(readable_by_all / "a.nii.gz")
    save(readable_by_all / "closed" / "b.nii.gz")
    save(readable_by_all / "open" / "c.nii.gz")
    (readable_by_all / "open" / "a_note.txt").touch(0o000)
    (readable_by_all / "closed").chmod(0o000)
    with Nobody():
        cases = {case.id: case.error for case in list_inputs([readable_by_all])}
    (readable_by_all / "closed").chmod(0o755)
    assert cases.keys() == {"a", "open_c", "closed", "open_a_note.txt"}
    assert cases["a"] == cases["open_c"] == ""
    assert "closed: cannot be read (Permission denied)" in cases["closed"]
    assert "a_note.txt: cannot be read (Permission denied)" in cases["open_a_note.txt"]


def test_an_unreadable_file_hides_no_series_beside_it(readable_by_all):
    (readable_by_all / "series").mkdir()
    (readable_by_all / "series" / "a.txt").touch(0o000)
    (readable_by_all / "series" / "b.dcm").write_bytes(bytes(128) + b"DICM")
    with Nobody():
        (case,) = list_inputs([readable_by_all])
    assert (case.id, case.error) == ("series", "")


def test_a_slice_that_a_link_fetches_from_outside_is_refused(tmp_path):
    series = tmp_path / "series"
    series.mkdir()
    (series / "1.dcm").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "2.dcm").write_bytes(bytes(128) + b"DICM")
    (series / "2.dcm").symlink_to(tmp_path / "2.dcm")
    for path in (series, save(series / "x" / "a.nii.gz").parents[1]):
        with pytest.raises(VolumeError, match=r"2\.dcm: .* a link that leads out of"):
            list_inputs([path])
    assert ids(list_inputs([series], follow_links=True)) == ["series", "x_a"]
    for number in (1, 2):  # the same in a data set
        save(tmp_path / "set" / "labels" / f"{number}.nii.gz")
        save(tmp_path / "set" / "images" / f"{number}.nii.gz")
    (tmp_path / "set" / "labels.json").write_text(json.dumps({"background": 0, "liver": 1}))
    shutil.copytree(series, tmp_path / "set" / "images" / "3", symlinks=True)
    with pytest.raises(VolumeError, match=r"images/3/2\.dcm: .* a link that leads out of"):
        list_inputs([tmp_path / "set"])


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr", ".hdr"])
def test_a_scan_whose_voxels_in_a_second_file_were_replaced_is_another(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".hdr":
        nib.save(nib.Nifti1Pair(np.zeros((3, 4, 5), np.int16), np.eye(4)), path)
    else:
        sitk.WriteImage(sitk.Image(3, 4, 5, sitk.sitkInt16), str(path))
    (data,) = (file for file in tmp_path.iterdir() if file != path)
    (case,) = list_inputs([path])
    before, times = case.state, (data.stat().st_atime_ns, data.stat().st_mtime_ns)
    os.utime(data, ns=(times[0], times[1] + 10**9))
    assert case.state != before
    os.utime(data, ns=times)
    assert case.state == before


def nnunet(root: Path) -> Path:
    for case in "abcd":
        save(root / "imagesTr" / f"{case}_0000.nii.gz")
        save(root / "labelsTr" / f"{case}.nii.gz")
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(description))
    (root / "splits_final.json").write_text(json.dumps([{"train": ["a"], "val": ["b"]}]))
    return root


def test_the_files_of_a_series_are_known_before_a_header_is_read(tmp_path):
    folder = tmp_path / "series"
    folder.mkdir()
    slices = [folder / f"{number}.dcm" for number in range(3)]
    for path in slices:
        path.write_bytes(b"nobody opened this")
    single = tmp_path / "a.nii.gz"
    assert InputCase("a", (folder, single)).files == [*slices, single]


def test_of_a_data_set_every_image_is_taken_whatever_splits_and_labels_say(tmp_path):
    root = nnunet(tmp_path / "set")
    (root / "labelsTr" / "a.nii.gz").unlink()
    save(root / "labelsTr" / "without_image.nii.gz")
    save(root / "imagesTs" / "e_0000.nii.gz")
    cases = list_inputs([root])
    assert sorted(ids(cases)) == ["a", "b", "c", "d", "e"]
    assert [case.error for case in cases] == [""] * 5
    (root / "splits_final.json").write_text("no JSON")
    assert len(list_inputs([root])) == 5


def test_an_entry_of_a_data_set_that_cannot_serve_fails_alone(tmp_path):
    root = nnunet(tmp_path / "set")
    (root / "imagesTr" / "b_0000.nii.gz").rename(root / "imagesTr" / "b_0003.nii.gz")
    (root / "imagesTr" / "notes.nii.gz").touch()
    cases = list_inputs([root])
    assert [case.id for case in cases if not case.error] == ["a", "c", "d"]
    errors = {case.id: case.error for case in cases if case.error}
    assert "expected 1 channel file from _0000 on" in errors.pop("b")
    (why,) = errors.values()
    assert "notes.nii.gz" in why
    shutil.rmtree(root / "imagesTr")
    (root / "imagesTr").mkdir()
    save(root / "imagesTr" / "b_0003.nii.gz")
    with pytest.raises(DatasetError, match="case b"):
        list_inputs([root])


@pytest.fixture
def tree(tmp_path):
    """Two cases of equally named files, a pair of header and data, and what is no volume."""
    for case in ("a", "b"):
        (tmp_path / case).mkdir()
        nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.diag([1.0, 2, 3, 1])), tmp_path / case / "ct.nii.gz")
    nib.save(nib.Nifti1Pair(np.zeros((2, 2, 2), np.int16), np.eye(4)), tmp_path / "pair.img")
    sitk.WriteImage(sitk.Image(4, 4, 4, sitk.sitkInt16), str(tmp_path / "flat.mha"))
    (tmp_path / "notes.txt").write_text("no volume")
    (tmp_path / ".hidden.nii").write_bytes(b"")
    return tmp_path


def test_a_folder_tree_gives_every_volume_once_under_its_own_name(tree):
    assert sorted(ids(list_volumes([tree]))) == ["a_ct", "b_ct", "flat", "pair"]
    assert len(list_volumes([tree, tree / "a", tree / "a/ct.nii.gz"])) == 4


@pytest.mark.parametrize("corrected", ["ct_Tilt_1", "ct_Eq_1", "ct_Tilt_Eq_1"])
def test_a_scan_that_dcm2niix_corrected_in_a_second_file_is_warned_of(tree, caplog, corrected):
    """The names are dcm2niix's for series with gantry tilt or changing slice distance."""
    list_volumes([tree])
    assert not caplog.records
    shutil.copy(tree / "a" / "ct.nii.gz", tree / "a" / f"{corrected}.nii.gz")
    list_volumes([tree])
    assert [f"case a_ct: its slices are not where a_{corrected} has them" in line for line in caplog.messages] == [True]


def test_a_volume_file_is_named_without_its_suffix(tree):
    (case,) = list_volumes([tree / "a/ct.nii.gz"])
    assert (case.id, case.images) == ("ct", (tree / "a/ct.nii.gz",))


def test_a_dicom_folder_is_one_volume_wherever_it_lies(shared_data):
    (direct,) = list_volumes([shared_data / "dicom_seg/ct-3slice"])
    assert direct.id == "ct-3slice"
    assert read_geometry(direct.images[0]).shape == (512, 512, 3)
    assert sorted(ids(list_volumes([shared_data / "dicom_compressed"]))) == ["jpeg2000", "rle"]


def test_a_single_file_that_is_no_volume_hears_what_it_is(tmp_path):
    write_series(tmp_path / "series", [0, 3])
    one = min((tmp_path / "series").iterdir())
    with pytest.raises(VolumeError, match=rf"one DICOM file of it; name its folder, {tmp_path / 'series'}"):
        list_inputs([one])
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "scan.mat").write_text("x")
    for path, words in (("a/scan.mat", "a file named scan.mat; "), ("a", "only scan.mat; convert the scans")):
        with pytest.raises(VolumeError, match=words):
            list_inputs([tmp_path / path])


def test_a_dicom_seg_in_a_folder_hides_no_series_or_volume_below_it(tmp_path, shared_data):
    shutil.copytree(shared_data / "dicom_seg", tmp_path / "in")
    (tmp_path / "in" / "liver_seg.nrrd").rename(tmp_path / "in" / "liver.nrrd")
    assert {case.id: case.images[0].name for case in list_inputs([tmp_path / "in"])} == {
        "ct-3slice": "ct-3slice", "liver": "liver.nrrd",
    }  # fmt: skip


def test_a_series_beside_folders_of_series_hides_none(tmp_path):
    write_series(tmp_path / "study", [0, 3])
    write_series(tmp_path / "study" / "second", [0, 3])
    assert [case.id for case in list_inputs([tmp_path / "study"])] == ["study", "second"]


def test_paths_without_volumes_are_refused(tree):
    for path, words in (("absent", "no such file"), ("notes.txt", "a file named notes.txt"), ("b/empty", "found none")):
        (tree / "b/empty").mkdir(exist_ok=True)
        with pytest.raises(VolumeError, match=words) as error:
            list_volumes([tree / path])
        assert str(tree / path) in str(error.value)


def test_two_volumes_never_share_a_name(tree):
    with pytest.raises(VolumeError, match="would both be called ct; pass the common parent"):
        list_volumes([tree / "a/ct.nii.gz", tree / "b/ct.nii.gz"])
    save(tree / "b/ct.nii")
    with pytest.raises(VolumeError, match="would both be called ct; rename one or move it away"):
        list_volumes([tree / "b"])


def test_inputs_are_data_sets_trees_and_files(tmp_path):
    for case in ("s1", "s2"):
        save(tmp_path / "set" / case / "ct.nii.gz")
        save(tmp_path / "set" / case / "segmentations" / "liver.nii.gz")
    cases = list_inputs([tmp_path / "set", save(tmp_path / "single.nii.gz")])
    assert sorted(case.id for case in cases) == ["s1", "s2", "single"]
    with pytest.raises(SegmentationError, match="both would be called"):
        list_inputs([tmp_path / "set", save(tmp_path / "S1.nii.gz")])


def test_the_name_of_a_result_does_not_depend_on_which_other_scans_lie_there(tmp_path):
    save(tmp_path / "in" / "x" / "ct.nii.gz")
    save(tmp_path / "in" / "b_0000.nii.gz")
    before = {case.images: case.id for case in list_inputs([tmp_path / "in"])}
    assert sorted(before.values()) == ["b", "x_ct"]
    for name in ("y/ct.nii.gz", "ct.nii.gz", "x/mr.nii.gz", "c.nii.gz", "d_0000.nii.gz"):
        save(tmp_path / "in" / name)
        now = {case.images: case.id for case in list_inputs([tmp_path / "in"])}
        assert before.items() <= now.items()


CHANNELS = ("CT", "PET")


@pytest.mark.parametrize(
    ("files", "arguments", "expected"),
    [
        ("a_0000 a_0001 b_0000 b_0001", ".", {"a": "a_0000 a_0001", "b": "b_0000 b_0001"}),
        ("imagesTs/a_0000 imagesTs/a_0001", "imagesTs", {"a": "imagesTs/a_0000 imagesTs/a_0001"}),
        ("a_0000 a_0001", "a_0001 a_0000", {"a": "a_0000 a_0001"}),
        ("CT PET", "PET CT", {"{folder}": "CT PET"}),
        ("pat1/CT pat1/PET", "pat1", {"pat1": "pat1/CT pat1/PET"}),
        ("p1/ct p1/pet p2/ct p2/pet", ".", {"p1": "p1/ct p1/pet", "p2": "p2/ct p2/pet"}),
        ("x/p1/a_pet x/p1/a_ct", ".", {"x_p1_a": "x/p1/a_ct x/p1/a_pet"}),
        ("p1-CT p1-PET p2-CT p2-PET", ".", {"p1": "p1-CT p1-PET", "p2": "p2-CT p2-PET"}),
        ("CT_p1 PET_p1", ".", {"p1": "CT_p1 PET_p1"}),
        ("p1/0000 p1/0001", ".", {"p1": "p1/0000 p1/0001"}),
        ("ct/p1 pet/p1 ct/p2 pet/p2", ".", {"p1": "ct/p1 pet/p1", "p2": "ct/p2 pet/p2"}),
        ("CT_0000 CT_0001 PET_0000 PET_0001", ".", {"0000": "CT_0000 PET_0000", "0001": "CT_0001 PET_0001"}),
        ("p1/CT/CT p1/PET/PET", ".", {"p1": "p1/CT/CT p1/PET/PET"}),
    ],
)
def test_all_usual_ways_to_lay_out_the_channels_of_a_case(tmp_path, files, arguments, expected):
    root = tmp_path / "in"
    for name in files.split():
        save(root / f"{name}.nii.gz")
    given = [root / (name if name in (".", "imagesTs", "pat1") else f"{name}.nii.gz") for name in arguments.split()]
    cases = list_inputs(given, CHANNELS)
    assert [case.error for case in cases] == [""] * len(cases)
    found = {case.id: [path.relative_to(root) for path in case.images] for case in cases}
    for name, images in expected.items():
        assert found.pop(name.format(folder="in")) == [Path(f"{image}.nii.gz") for image in images.split()]
    assert not found


def test_a_folder_that_nnunet_predicts_below_its_dataset_json_has_the_data_sets_channels(tmp_path):
    for number in (0, 1):
        save(tmp_path / "set" / "imagesTs" / f"a_000{number}.nii.gz")
        save(tmp_path / "set" / "labelsTs" / "a.nii.gz")
    description = {
        "channel_names": {"0": "CT", "1": "PET"},
        "labels": {"background": 0, "x": 1},
        "file_ending": ".nii.gz",
    }
    (tmp_path / "set" / "dataset.json").write_text(json.dumps(description))
    for path in (tmp_path / "set", tmp_path / "set" / "imagesTs"):
        (case,) = list_inputs([path], CHANNELS)
        assert (case.id, [image.name for image in case.images]) == ("a", ["a_0000.nii.gz", "a_0001.nii.gz"])


def test_a_case_without_its_image_is_named(tmp_path, caplog):
    for case in ("s1", "s2"):
        save(tmp_path / case / "ct.nii.gz")
        save(tmp_path / case / "segmentations" / "liver.nii.gz")
    (tmp_path / "s2" / "ct.nii.gz").unlink()
    (tmp_path / "meta.csv").write_text("image_id\ns1\ns2\ns3\n")
    good, bad = list_inputs([tmp_path])
    assert (good.id, good.error) == ("s1", "")
    assert (bad.id, bad.images) == ("s2", ())
    assert "expected an image beside the label, found none" in bad.error
    assert "meta.csv: expected a folder for every case in it, found none for 1 of 3: s3" in caplog.text
    (tmp_path / "meta.csv").write_text("split\ntrain\n")  # of no use here, and no obstacle
    assert len(list_inputs([tmp_path])) == 2
    save(tmp_path / "kits" / "c1" / "imaging.nii.gz")
    for case in ("c1", "c2"):
        save(tmp_path / "kits" / case / "segmentation.nii.gz")
    assert {case.id: bool(case.error) for case in list_inputs([tmp_path / "kits"])} == {"c1": False, "c2": True}


def test_scans_in_folders_with_other_names_are_no_data_set(tmp_path):
    for name in ("a/first", "a/mask", "b/second", "c/third"):
        save(tmp_path / f"{name}.nii.gz")
    assert sorted(ids(list_inputs([tmp_path]))) == ["a_first", "b_second", "c_third"]


def test_a_datalist_of_monai_is_an_input(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / "images" / f"{name}.nii.gz")
    entries = [{"image": ["images/a.nii.gz", "images/b.nii.gz"], "label": "labels/a.nii.gz", "fold": 0}]
    for part in ("training", "testing"):
        (tmp_path / "datalist.json").write_text(json.dumps({part: entries}))
        (case,) = list_inputs([tmp_path / "datalist.json"], CHANNELS)
        assert (case.id, [image.name for image in case.images]) == ("a", ["a.nii.gz", "b.nii.gz"])


def test_lists_without_labels_and_pairs_without_class_names_are_inputs(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / "images" / f"{name}.nii.gz")
        save(tmp_path / "labels" / f"{name}.nii.gz")
    assert ids(list_inputs([tmp_path])) == ["a", "b"]
    rows = [{"case": "one", "image": ["images/a.nii.gz", "images/b.nii.gz"]}]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    (tmp_path / "list.csv").write_text("case,image\none,images/a.nii.gz|images/b.nii.gz\n")
    for suffix in ("json", "csv"):
        (case,) = list_inputs([tmp_path / f"list.{suffix}"], CHANNELS)
        assert (case.id, [image.name for image in case.images]) == ("one", ["a.nii.gz", "b.nii.gz"])


def test_an_incomplete_set_of_channels_is_not_taken_for_a_case(tmp_path):
    for name in ("a_0000", "a_0002", "b", "CT", "c_pet"):
        save(tmp_path / "x" / f"{name}.nii.gz")
    cases = {case.id: case for case in list_inputs([tmp_path], CHANNELS)}
    assert {case.id: len(case.images) for case in cases.values()} == {"x_a": 2, "x_b": 1, "x": 1, "x_c": 1}
    assert "each channel (CT, PET), found a_0000.nii.gz, a_0002.nii.gz in" in cases["x_a"].error
    assert "found CT.nii.gz in" in cases["x"].error
    assert cases["x_b"].error == ""  # the network refuses it: nothing says which channel it is


def test_labels_are_never_taken_for_scans_whatever_is_wrong_with_their_description(tmp_path):
    root = nnunet(tmp_path / "set")
    (root / "dataset.json").write_text((root / "dataset.json").read_text().replace('"liver": 1', '"x": 1, "x": 2'))
    assert sorted(ids(list_inputs([root]))) == ["a", "b", "c", "d"]
    (root / "dataset.json").write_text("no JSON")
    with pytest.raises(DatasetError, match=r"dataset\.json: expected JSON"):
        list_inputs([root])
    (root / "dataset.json").unlink()
    save(root / "imagesTs" / "e_0000.nii.gz")
    assert sorted(ids(list_inputs([root]))) == ["a", "b", "c", "d", "e"]
    for case in "abcde":
        part = "Ts" if case == "e" else "Tr"
        save(root / f"images{part}" / f"{case}_0001.nii.gz")
    assert [len(case.images) for case in list_inputs([root], CHANNELS)] == [2] * 5
    save(root / "more" / "f.nii.gz")
    assert len(list_inputs([root], CHANNELS)) == 5
    shutil.rmtree(root / "labelsTr")  # a tree, in which nothing may be missing without a word
    assert "more_f" in ids(list_inputs([root]))
