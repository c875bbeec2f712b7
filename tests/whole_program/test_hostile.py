"""Bad input of every kind, through the command line: what is said, the exit code, and that nothing else was touched.

The rows of `test_check.BAD` are tried here as a person would, beside those that no inspection of a data set sees. What
a file claims is measured in a process of its own with a limit on its memory.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml

from pipeline.cache.entry import DamagedEntryError, read_entry
from pipeline.cli.main import main
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.listing import list_cases
from pipeline.inference.inputs import list_volumes
from tests.support.volumes import BAD, CLASSES, Bad, Folder, cut, edit_header, hounsfield, organs, save, write_series

TRAIN = (
    "train --dataset_root data --log_dir logs --data.cache_dir cache --target_size 16 16 16 --batch_size 1"
    " --num_workers 0 --base_channels 2 --n_gpus 0 --precision 32 --max_epochs 3 --warmup_epochs 0"
    " --training.early_stopping_patience 1"
).split()
RESUME = [*TRAIN, "--resume"]
PREDICT = ["predict", "logs/run", "new/scan.nii.gz", "--output", "out", "--device", "cpu", "--precision", "32"]
RUN = "body_unet_bs1_lr0.0001_ch2"


class Bomb:
    """Unpickled, it writes the file "fired" into the working folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("fired"),)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in nnU-Net's layout, a scan, and a run that stopped early, so that it can be resumed."""
    place = tmp_path_factory.mktemp("template")
    for folder in ("data/imagesTr", "data/labelsTr", "new"):
        (place / folder).mkdir(parents=True)
    for name in "abcd":
        save(place / f"data/imagesTr/{name}_0000.nii.gz", hounsfield(name))
        save(place / f"data/labelsTr/{name}.nii.gz", organs())
    write_json(place / "data/dataset.json", {"channel_names": {"0": "CT"}, "labels": CLASSES, "file_ending": ".nii.gz"})
    folds = [{"train": ["a", "b"], "val": ["c", "d"]}]
    write_json(place / "data/splits_final.json", folds)
    save(place / "new/scan.nii.gz", hounsfield("s"))
    before = Path.cwd()
    os.chdir(place)
    try:
        assert main(TRAIN) == 0
    finally:
        os.chdir(before)
    (place / "logs" / RUN).rename(place / "logs/run")
    return place


@pytest.fixture
def place(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the template, as the working folder."""
    shutil.copytree(template, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file and link below a folder: when it was changed, and what it holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            held = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
            found[str(path.relative_to(folder))] = (path.lstat().st_mtime_ns, held)
    return found


# Ways to spoil the place ----------------------------------------------------------------------------------------------


def edit_json(path: str, **changes: object) -> None:
    write_json(Path(path), json.loads(Path(path).read_text()) | changes)


def description(**changes: object) -> list[str]:
    edit_json("data/dataset.json", **changes)
    return ["check", "data"]


def listed(**changes: object) -> list[str]:
    """Check an explicit list whose second case is changed."""
    cases = [{"case": n, "image": f"data/imagesTr/{n}_0000.nii.gz", "label": f"data/labelsTr/{n}.nii.gz"} for n in "ab"]
    cases[1] |= changes
    write_json(Path("cases.json"), {"cases": cases, "labels": CLASSES})
    return ["check", "cases.json"]


def decathlon(image: object) -> list[str]:
    for folder in Path("data").glob("imagesTr/*"):
        folder.rename(folder.with_name(folder.name.replace("_0000", "")))
    entries = [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in "abc"]
    return description(training=[*entries, {"image": image, "label": "labelsTr/d.nii.gz"}])


def csv(text: str | bytes) -> list[str]:
    Path("cases.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    write_json(Path("labels.json"), CLASSES)
    return ["check", "cases.csv"]


def text_file(path: str, text: str | bytes, *arguments: str) -> list[str]:
    Path(path).write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(arguments) or ["check", "data"]


def config(content: object, *more: str) -> list[str]:
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    Path("c.yaml").write_text(text)
    return [*TRAIN[:1], "--config", "c.yaml", *TRAIN[1:], "--exp_name", "new", *more]


def network(target: object, **arguments: object) -> list[str]:
    return config({"model": {"network": {"_target_": target, **arguments}}})


def foreign_package() -> list[str]:
    Path("foreign.py").write_text("from pathlib import Path\nPath('fired').touch()\n")
    return network("foreign.Net")


def in_data(path: str, target: str, *arguments: str) -> list[str]:
    """Put a link in the place of a file of the data set."""
    Path(path).rename("outside.nii.gz")
    Path(path).symlink_to(target)
    return list(arguments) or ["check", "data"]


def linked_folder() -> list[str]:
    Path("data/labelsTr").rename("elsewhere")
    Path("data/labelsTr").symlink_to(Path("elsewhere").resolve())
    return ["check", "data"]


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
    return ["check", "data"]


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
    return ["check", "data"]


def dicom_slices(**changes: object) -> list[str]:
    import pydicom

    write_series(Path("series"), [0, 3, 6])
    for path in Path("series").iterdir():
        part = pydicom.dcmread(path)
        for field, value in changes.items():
            setattr(part, field, value)
        part.save_as(path)
    return listed(image="series")


def checkpoint(**changes: object) -> list[str]:
    path = Path("logs/run/checkpoints/best_model.ckpt")
    torch.save(torch.load(path, weights_only=True) | changes, path)
    return PREDICT


def compressed_checkpoint() -> list[str]:
    path = Path("logs/run/checkpoints/best_model.ckpt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile("new.zip", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        new.writestr("archive/data/999", bytes(2**24))
    Path("new.zip").replace(path)
    return PREDICT


def bare_pickle(path: str, *arguments: str) -> list[str]:
    Path(path).write_bytes(pickle.dumps(Bomb()))
    return list(arguments)


def numpy_bomb(name: str) -> list[str]:
    with Path(name).open("wb") as file:
        np.savez(file, image=np.array([Bomb()], dtype=object))
    return listed(image=name)


def resumed(**changes: object) -> list[str]:
    run = Path("logs/run").rename(Path("logs") / RUN)
    path = run / "resume/last.ckpt"
    torch.save(torch.load(path, weights_only=True) | changes, path)
    return RESUME


def resumed_file(name: str, content: bytes) -> list[str]:
    run = Path("logs/run").rename(Path("logs") / RUN)
    (run / name).write_bytes(content)
    return RESUME


def run_file(name: str, content: str, *arguments: str) -> list[str]:
    Path("logs/run", name).write_text(content)
    return list(arguments)


def log(**changes: object) -> list[str]:
    path = Path("logs/run/training_log.json")
    document = json.loads(path.read_text())
    document["training_history"] |= changes
    write_json(path, document)
    return ["plot", "logs/run"]


def pipe() -> list[str]:
    Path("data/imagesTr/b_0000.nii.gz").unlink()
    os.mkfifo("data/imagesTr/b_0000.nii.gz")
    return ["check", "data"]


def alias_bomb() -> str:
    levels = ["model: {network: {_target_: BodyNet, l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 12)]
    return ",\n  ".join(levels) + "}}"


def evaluation(label: np.ndarray, prediction: np.ndarray | None, affine: np.ndarray | None = None) -> list[str]:
    for folder in ("labels", "predictions"):
        Path(folder).mkdir()
    save(Path("labels/a.nii.gz"), label)
    if prediction is not None:
        save(Path("predictions/a.nii.gz"), prediction, np.diag([2.0, 2.0, 3.0, 1.0]) if affine is None else affine)
    return "evaluate --predictions predictions --labels labels".split()


def compared(content: object) -> list[str]:
    arguments = evaluation(organs(), organs())
    assert main(arguments) == 0
    write_json(Path("other.json"), content)
    return [*arguments, "--output", "predictions", "--compare", "other.json"]


class Row(NamedTuple):
    """A kind of bad input: how the place is spoiled and what is then typed; what the answer has to say."""

    name: str
    spoil: Callable[[], list[str]]
    words: tuple[str, ...]
    code: int = 2
    may_write: tuple[str, ...] = ()


def of_check(bad: Bad) -> Row:
    def spoil() -> list[str]:
        Path("set").mkdir()
        folder = Folder(Path("set"))
        bad.spoil(folder)
        folder.write()
        return ["check", "set/cases.json"]

    case = (f"case {bad.case}",) if bad.case else ()
    words = (*case, bad.expected, bad.found, bad.remedy)
    return Row(bad.name, spoil, words, 2 if bad.severity == "error" else 1)


def unlisted(word: str) -> Callable[[], list[str]]:
    return lambda: [*TRAIN, "--exp_name", word]


ROWS = [of_check(bad) for bad in BAD] + [
    # settings
    Row(
        "a config file that is not there",
        lambda: [*TRAIN, "--config", "no.yaml"],
        ("--config no.yaml", "there is no such file"),
    ),
    Row("a config file that is a folder", lambda: [*TRAIN, "--config", "data"], ("--config data", "cannot be read")),
    Row(
        "a config file that is no YAML",
        lambda: config("data: [1,\n\tx: {"),
        ("--config c.yaml", "neither YAML nor JSON"),
    ),
    Row(
        "a config file with a list",
        lambda: config("- data\n- model\n"),
        ("--config c.yaml", "expected the groups", "found no mapping"),
    ),
    Row(
        "a config file that makes Python objects",
        lambda: config("data: !!python/object/apply:os.mkdir [fired]"),
        ("--config c.yaml", "neither YAML nor JSON"),
    ),
    Row("a config file of a billion laughs", lambda: config(alias_bomb()), ("--config c.yaml", "alias")),
    Row(
        "an unknown group of settings",
        lambda: config({"dta": {}}),
        ("--config c.yaml", "unknown group", "dta", "known are"),
    ),
    Row(
        "an unknown setting",
        lambda: config({"data": {"batchsize": 3}}),
        ("unknown setting data.batchsize", "known are"),
    ),
    Row("a setting of the wrong type", lambda: [*TRAIN, "--lr", "fast"], ("training.lr", "fast")),
    Row("a setting out of range", lambda: [*TRAIN, "--lr", "-1"], ("training.lr must be above 0", "-1")),
    Row("a list of the wrong length", lambda: config({"data": {"flips": "x"}}), ("data.flips wants a list",)),
    Row("a group that is no mapping", lambda: config({"data": ["x"]}), ("group data must hold settings",)),
    Row(
        "a target size that no machine holds",
        lambda: [*TRAIN, "--target_size", "100000", "100000", "100000"],
        ("data.target_size",),
    ),
    Row("an unknown flag", lambda: [*TRAIN, "--learning", "1"], ("--learning",)),
    Row(
        "a function in the place of a network",
        lambda: network("os.system", command="touch fired"),
        ("os.system", "taken from networks, pasco, monai.networks, torch.nn only", "--trust_config"),
    ),
    Row(
        "an expression in the place of a network",
        lambda: network("__import__('pathlib').Path('fired').touch()"),
        ("taken from networks", "--trust_config"),
    ),
    Row(
        "a network out of a foreign package",
        foreign_package,
        ("network foreign.Net", "taken from networks", "foreign", "--trust_config"),
    ),
    Row("an unknown network", lambda: network("SegRasNet"), ("SegRasNet", "did you mean SegResNet?", "known are")),
    Row(
        "an unknown argument of a network",
        lambda: network("SegResNet", init_filter=1),
        ("no argument init_filter", "it takes"),
    ),
    Row("a run name with ..", unlisted("../new"), ("run name", "holds a slash", "choose a plain one")),
    Row("a run name that is absolute", unlisted("/tmp/new"), ("run name", "holds a slash")),
    Row("a run name that steers the terminal", unlisted("a\x1b[2J"), ("run name", "control or invisible")),
    Row("a run name longer than a file name", unlisted("a" * 300), ("run name", "255 bytes")),
    Row(
        "a run that exists",
        lambda: (Path("logs/run").rename(f"logs/{RUN}"), TRAIN)[1],
        (RUN, "--resume", "--overwrite"),
    ),
    # the data set and its own files
    Row("a data set that is not there", lambda: ["check", "nowhere"], ("nowhere", "a data set", "no such file")),
    Row(
        "a folder that is no data set",
        lambda: ["check", "new"],
        ("new", "a data set", "none of: dataset.json", "cases.csv"),
    ),
    Row(
        "a dataset.json that is no JSON",
        lambda: text_file("data/dataset.json", "{"),
        ("data/dataset.json", "cannot be read as JSON", "repair"),
    ),
    Row(
        "a dataset.json that is a list",
        lambda: text_file("data/dataset.json", "[]"),
        ("data/dataset.json", "an object with labels", "[]"),
    ),
    Row(
        "a dataset.json of a hundred thousand brackets",
        lambda: text_file("data/dataset.json", "[" * 100000),
        ("data/dataset.json", "cannot be read as JSON"),
    ),
    Row(
        "a dataset.json of bytes",
        lambda: text_file("data/dataset.json", b"\xff\xfe\x00\x81"),
        ("data/dataset.json", "cannot be read as JSON"),
    ),
    Row(
        "labels that are regions of values",
        lambda: description(labels={"background": 0, "tumour": [1, 2]}),
        ("data/dataset.json", "region of several values"),
    ),
    Row(
        "a label value that is no number",
        lambda: description(labels={"background": 0, "liver": "x"}),
        ("data/dataset.json", "a whole number for class 'liver'", "'x'"),
    ),
    Row(
        "a label value beyond every file",
        lambda: description(labels={"background": 0, "liver": 10**30}),
        ("data/dataset.json", "values up to 2147483647", "10000000000000000000 for 'liver'"),
    ),
    Row(
        "a class twice",
        lambda: description(labels={"0": "background", "1": "liver", "2": "liver"}),
        ("class name 'liver' 2 times",),
    ),
    Row("no labels", lambda: description(labels=None), ("data/dataset.json", 'labels as {"liver": 1, …}', "None")),
    Row(
        "channels that are none", lambda: description(channel_names=7), ("data/dataset.json", "channel_names like", "7")
    ),
    Row("a file ending that is no volume's", lambda: description(file_ending=".png"), ("file_ending", ".png")),
    Row(
        "a file name with ..",
        lambda: decathlon("../new/scan.nii.gz"),
        ("data/dataset.json", "leads out of the data set", "cases.csv"),
    ),
    Row(
        "an absolute file name", lambda: decathlon("/etc/hostname"), ("data/dataset.json", "leads out of the data set")
    ),
    Row(
        "a file name of Windows",
        lambda: decathlon("C:\\scan.nii.gz"),
        ("data/dataset.json", "leads out of the data set"),
    ),
    Row(
        "a file name with a zero byte", lambda: decathlon("a\0b.nii.gz"), ("data/dataset.json", "a file name", "found")
    ),
    Row(
        "a file name that is a list of numbers",
        lambda: decathlon([1, 2]),
        ("data/dataset.json", "a file name", "found"),
    ),
    Row(
        "a link that leaves the data set",
        lambda: in_data("data/imagesTr/b_0000.nii.gz", "../../outside.nii.gz"),
        ("case b", "leads out of the data set", "--follow_links"),
    ),
    Row("a folder of links", linked_folder, ("case a", "case d", "leads out of the data set", "--follow_links")),
    Row("a link to nowhere", lambda: in_data("data/labelsTr/b.nii.gz", "gone.nii.gz"), ("case b", "does not exist")),
    Row(
        "a file that is no case of nnU-Net",
        lambda: text_file("data/imagesTr/notes.txt", ""),
        ("notes.txt", "a name like CASE_0000.nii.gz"),
    ),
    Row(
        "a fold that is not there",
        lambda: ["train", *TRAIN[1:], "--data.fold", "7", "--exp_name", "new"],
        ("splits_final.json", "expected fold 7", "found 1 folds"),
    ),
    Row(
        "a case in train and in val",
        lambda: text_file("data/splits_final.json", '[{"train": ["a", "b"], "val": ["b"]}]'),
        ("case b is in train and in val",),
    ),
    Row(
        "a split of no list",
        lambda: text_file("data/splits_final.json", '[{"train": 1}]'),
        ("splits_final.json", "fold 0 to hold lists"),
    ),
    Row(
        "a case id with a slash",
        lambda: listed(case="../../b"),
        ("names that can be file", "'../../b'", "use letters"),
    ),
    Row(
        "a case id of 300 letters",
        lambda: listed(case="b" * 300),
        ("names that can be file", "128 characters at most"),
    ),
    Row("a case id that hides", lambda: listed(case=".b"), ("names that can be file", "'.b'")),
    Row("a case twice", lambda: listed(case="a"), ("case a is listed 2 times",)),
    Row(
        "a name too long for the disk",
        lambda: listed(image="b" * 400 + ".nii.gz", case="b"),
        ("case b", "cannot be accessed"),
    ),
    Row("an unknown column", lambda: listed(colour="red"), ("cases.json", "unknown column 'colour'")),
    Row("an unknown side of the split", lambda: listed(split="tomorrow"), ("case b", "train, val or test", "tomorrow")),
    Row("an image that is no text", lambda: listed(image={"a": 1}), ("cases.json", "case number 2")),
    Row(
        "a ragged CSV",
        lambda: csv("case,image,label\na,data/imagesTr/a_0000.nii.gz\n"),
        ("cases.csv", "3 columns in row 2", "2"),
    ),
    Row("a CSV of bytes", lambda: csv(b"case,image\n\xff\xff"), ("cases.csv",)),
    Row(
        "a CSV with an endless quote",
        lambda: csv('case,image,label\n"' + "x" * 200000),
        ("cases.csv", "cannot be read as CSV"),
    ),
    Row("an empty list", lambda: csv("case,image,label\n"), ("cases.csv", "a list of cases", "none")),
    # volumes
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
        ("case b", "finite affine"),
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
        ("case b", "a volume file or DICOM folder", "data/imagesTr/b_0000.nii.gz"),
    ),
    Row(
        "a pickle in the place of an image",
        lambda: numpy_bomb("b.npz"),
        ("case b", "a volume file or DICOM folder", "b.npz"),
    ),
    # checkpoints and runs
    Row(
        "a pickle bomb in best_model.ckpt",
        lambda: checkpoint(more=Bomb()),
        ("best_model.ckpt", "refused", "could run code"),
    ),
    Row(
        "a bare pickle named best_model.ckpt",
        lambda: bare_pickle("logs/run/checkpoints/best_model.ckpt", *PREDICT),
        ("best_model.ckpt", "refused"),
    ),
    Row("a compressed checkpoint", compressed_checkpoint, ("best_model.ckpt", "compressed")),
    Row(
        "a truncated checkpoint",
        lambda: (cut(Path("logs/run/checkpoints/best_model.ckpt"), 9000), PREDICT)[1],
        ("best_model.ckpt", "damaged"),
    ),
    Row(
        "a checkpoint of a foreign class",
        lambda: checkpoint(network={"_target_": "foreign.Net"}),
        ("best_model.ckpt", "network foreign.Net", "--trust_config"),
    ),
    Row(
        "a checkpoint of a network that no machine holds",
        lambda: checkpoint(network={"_target_": "networks.body_net.BodyNet", "n_classes": 4, "base_channels": 100000}),
        ("best_model.ckpt", "expected weights for a network of"),
    ),
    Row(
        "a checkpoint with preprocessing of its own",
        lambda: checkpoint(preprocessing={"colour": "red"}),
        ("best_model.ckpt", "expected the preprocessing of a training", "colour"),
    ),
    Row("a checkpoint without class names", lambda: checkpoint(class_names=None), ("best_model.ckpt", "class_names")),
    Row("a checkpoint that is none", lambda: checkpoint(state_dict=7), ("best_model.ckpt", "no mapping state_dict")),
    Row("a checkpoint of another version", lambda: checkpoint(format=99), ("best_model.ckpt", "format 99")),
    Row(
        "a pickle bomb in the state to resume",
        lambda: resumed(more=Bomb()),
        ("last.ckpt", "cannot be resumed from", "--overwrite"),
    ),
    Row(
        "a truncated state to resume",
        lambda: resumed_file("resume/last.ckpt", b"PK\3\4"),
        ("last.ckpt", "cannot be resumed from"),
    ),
    Row(
        "a state to resume without a network",
        lambda: resumed(network=None),
        ("last.ckpt", "found no network", "--overwrite"),
    ),
    Row(
        "the config of a run that is no JSON, to resume",
        lambda: resumed_file("training_config.json", b"{"),
        ("training_config.json", "is not valid JSON", "restore the file"),
    ),
    Row(
        "another network than the run's, to resume",
        lambda: [*resumed(), "--model.network", '{"_target_": "SegResNet"}'],
        ("model.network", "another run"),
    ),
    Row(
        "a log that is no JSON",
        lambda: run_file("training_log.json", "{", "plot", "logs/run"),
        ("training_log.json", "is not valid JSON"),
    ),
    Row(
        "a log with NaN",
        lambda: run_file("training_log.json", '{"training_history": NaN}', "plot", "logs/run"),
        ("training_log.json", "NaN is not JSON"),
    ),
    Row("a log of unequal arrays", lambda: log(epoch=[0]), ("training_log.json", "equal length")),
    Row("a log of texts", lambda: log(val_loss=["x"]), ("training_log.json", "expected a number, found 'x'")),
    Row(
        "a summary of an unknown end",
        lambda: run_file("training_summary.json", '{"status": "lost"}', "compare", "logs"),
        ("training_summary.json", "status", "lost"),
    ),
    Row(
        "a config of a run without groups",
        lambda: run_file("training_config.json", "{}", "compare", "logs"),
        ("training_config.json", "expected a group"),
    ),
    Row("a folder without runs", lambda: ["compare", "new"], ("new", "expected a run folder")),
    # predicting and evaluating
    Row(
        "a scan that is not there", lambda: [*PREDICT[:2], "gone.nii.gz", *PREDICT[3:]], ("gone.nii.gz", "no such file")
    ),
    Row(
        "a folder without scans",
        lambda: (Path("empty").mkdir(), [*PREDICT[:2], "empty", *PREDICT[3:]])[1],
        ("empty", "found none"),
    ),
    Row(
        "a run that is none",
        lambda: ["predict", "new", *PREDICT[2:]],
        ("new", "expected a run folder or a best_model.ckpt"),
    ),
    Row(
        "an output over its input",
        lambda: [*PREDICT[:4], "new", *PREDICT[5:]],
        ("scan.nii.gz is an input", "choose another --output"),
    ),
    Row(
        "a class that the run does not know",
        lambda: [*PREDICT, "--keep_largest", "brain"],
        ("keep_largest", "unknown class 'brain'", "liver"),
    ),
    Row("a format that is none", lambda: [*PREDICT, "--formats", "jpeg"], ("formats", "jpeg", "nifti")),
    Row("an unknown axis to mirror", lambda: [*PREDICT, "--tta=xw"], ("tta", "x, y and z", "xw")),
    Row("a device that is not there", lambda: [*PREDICT, "--device", "cuda:7"], ("cuda:7", "does not exist")),
    Row(
        "a link that leaves the folder of scans",
        lambda: (Path("new/b.nii.gz").symlink_to("../data/labelsTr/a.nii.gz"), [*PREDICT[:2], "new", *PREDICT[3:]])[1],
        ("new/b.nii.gz", "leads out of new", "--follow_links"),
    ),
    Row(
        "a damaged scan",
        lambda: (cut(Path("new/scan.nii.gz"), 500), PREDICT)[1],
        ("scan", "truncated or damaged"),
        1,
        ("out",),
    ),
    Row(
        "predictions without labels",
        lambda: ["evaluate", "--predictions", "data/labelsTr"],
        ("--predictions DIR and --labels DIR",),
    ),
    Row(
        "predictions that are not there",
        lambda: ["evaluate", "--predictions", "nowhere", "--labels", "data"],
        ("nowhere", "no such file"),
    ),
    Row("a prediction on another grid", lambda: evaluation(organs(), organs(), np.diag([3.0, 2, 3, 1])), ("a", "grid")),
    Row("a prediction of no label", lambda: evaluation(organs(), None), ("predictions",)),
    Row(
        "a metrics.json of something else",
        lambda: compared({"format": 0}),
        ("other.json", "metrics.json"),
        2,
        ("predictions",),
    ),
    Row(
        "a metrics.json of other cases",
        lambda: compared({"format": 1, "class_names": ["background", "1"], "cases": []}),
        ("other.json",),
        2,
        ("predictions",),
    ),
    Row("a cache that is none", lambda: ["cache", "info", "--cache_dir", "new"], ("new",)),
]


def test_there_are_at_least_60_kinds_of_bad_input() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS) >= 60


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
@pytest.mark.fault(
    f"{len(ROWS)} kinds of bad input, through the command line",
    "case or file, expected, found, what to do; exit code 2 (warnings: 1); no traceback, no file written or changed",
)
def test_bad_input_is_named_and_nothing_else_is_touched(
    row: Row, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = row.spoil()
    before = contents(place)
    capsys.readouterr()
    assert main(arguments) == row.code
    said = "".join(capsys.readouterr())
    assert [word for word in row.words if word not in said] == [], said
    assert "Traceback" not in said
    changed = {name for name, state in (contents(place).items() ^ before.items())}
    assert not {name for name in changed if not name.startswith(row.may_write or ("-",))}
    if row.code == 2 and arguments[0] != "check":
        assert said.splitlines()[-1].startswith("bodyseg: ")


MEASURE = """
import json, resource, sys, time
from transforms.io.load import VolumeError, read_volume
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**30,) * 2)
before = peak()
for path in sys.argv[1:]:
    started = time.monotonic()
    try:
        said = str(read_volume(path).array.shape)
    except VolumeError as error:
        said = "refused: " + str(error)
    print(json.dumps([said, time.monotonic() - started, peak() - before]))
"""


@pytest.mark.fault(
    "headers (NIfTI, NRRD, MetaImage) that claim 10^12 voxels, and gzip that unpacks to gigabytes",
    "refused within 5 s of one core and 100 MB of memory, measured in a process of its own",
)
def test_hostile_headers_take_neither_memory_nor_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("scan.nii.gz"), hounsfield("s"))
    whole = gzip.decompress(Path("scan.nii.gz").read_bytes())
    fields: dict[str, dict[str, object]] = {
        "endless": {},
        "far": {"vox_offset": 2.0**30},
        "many": {"dim": [3, 10000, 10000, 10000, 1, 1, 1, 1]},
        "wide": {"dim": [3, 1200, 1000, 900, 1, 1, 1, 1], "datatype": 64, "bitpix": 64},
    }
    for name, changes in fields.items():
        Path(f"{name}.nii.gz").write_bytes(gzip.compress(whole))
        edit_header(Path(f"{name}.nii.gz"), **changes)
        endless(
            f"{name}.nii.gz", gzip.decompress(Path(f"{name}.nii.gz").read_bytes()), 9000 if name == "wide" else 2048
        )
    Path("many.nrrd").write_bytes(nrrd("10000 10000 10000"))
    Path("many.mha").write_bytes(mha("10000 10000 10000"))
    Path("packed.mha").write_bytes(mha("1000 1000 2000", more="CompressedData = True\n"))
    names = ["endless.nii.gz", "far.nii.gz", "many.nii.gz", "wide.nii.gz", "many.nrrd", "many.mha", "packed.mha"]
    done = subprocess.run([sys.executable, "-c", MEASURE, *names], capture_output=True, text=True, check=True)
    measured = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(measured) == len(names)
    for name, (said, seconds, megabytes) in zip(names, measured, strict=True):
        assert said.startswith(f"refused: {name}: "), said
        assert seconds < 5, (name, seconds)
        assert megabytes < 100, (name, megabytes)


@pytest.mark.fault(
    "pickle bombs in the place of cached cases", "not executed; the cases are prepared again, exit code 0"
)
def test_a_bomb_in_the_cache_is_not_executed_and_prepared_again(place: Path) -> None:
    entries = sorted(Path("cache").glob("*.bodycase"))
    whole = [path.read_bytes() for path in entries]
    assert len(entries) == 4
    for path in entries:
        path.write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(DamagedEntryError, match="not an entry of this cache"):
            read_entry(path)
    assert main([*TRAIN, "--exp_name", "again", "--max_epochs", "1"]) == 0
    assert not Path("fired").exists()
    assert [path.read_bytes()[:8] for path in entries] == [content[:8] for content in whole]


FOREIGN = """
from pathlib import Path
from torch import nn
Path("fired").touch()
class Net(nn.Sequential):
    def __init__(self, in_channels=1, out_channels=2):
        super().__init__(nn.Conv3d(in_channels, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, out_channels, 1))
"""


@pytest.mark.fault(
    "a config or checkpoint that names a class of a foreign package",
    "one line with path, allow-list and flag; not even imported, unless --trust_config is given",
)
def test_a_foreign_network_trains_and_predicts_only_where_it_is_trusted(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own_nets.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(str(place))
    training = [*TRAIN, "--exp_name", "own", "--model.network", '{"_target_": "own_nets.Net"}', "--max_epochs", "1"]
    predicting = ["predict", "logs/own_bs1_lr0.0001_ch2", *PREDICT[2:]]
    assert main(training) == 2
    assert "--trust_config" in capsys.readouterr().err
    assert not Path("fired").exists()
    assert main([*training, "--trust_config"]) == 0
    Path("fired").unlink()
    sys.modules.pop("own_nets")
    assert main(predicting) == 2
    assert "network own_nets.Net" in capsys.readouterr().err
    assert not Path("fired").exists()
    assert main([*predicting, "--trust_config"]) == 0
    assert Path("out/scan.nii.gz").is_file()


@pytest.mark.fault("class names of a checkpoint that are paths", "masks a structure stay below the output folder")
def test_no_class_name_leads_out_of_the_output(place: Path) -> None:
    names = ["background", "../../../fired", "/fired", "..\\fired\n"]
    arguments = [*checkpoint(class_names=names), "--per_structure"]
    before = contents(place)
    assert main(arguments) == 0
    written = set(contents(place)) - set(before)
    assert written
    assert all(name.startswith("out/") for name in written)
    masks = sorted(path.name for path in Path("out/scan/segmentations").iterdir())
    assert masks == ["fired.nii.gz", "fired_2.nii.gz", "fired_3.nii.gz"]
    assert not (place.parent / "fired.nii.gz").exists()


def test_outputs_are_named_without_what_steers_a_terminal_or_overflows_a_name(tmp_path: Path) -> None:
    for name in ("a\x1b[2Jb", "é" * 100 + "1", "é" * 100 + "2"):
        save(tmp_path / f"{name}.nii.gz", hounsfield("a"))
    ids = sorted(source.id for source in list_volumes([tmp_path]))
    assert ids[0] == "a_[2Jb"
    assert len({*ids}) == 3
    assert all(len(name.encode()) <= 200 and name.isprintable() for name in ids)


def test_links_are_followed_where_the_user_says_so_or_made_them_at_the_root(place: Path) -> None:
    Path("link").symlink_to("data")
    assert len(list_cases("link").cases) == 4
    linked_folder()
    with pytest.raises(DatasetError) as error:
        list_cases("data")
    assert len([line for line in error.value.lines if line.startswith("case ")]) == 4
    assert len(list_cases("data", follow_links=True).cases) == 4
    listed(image=str(place / "new/scan.nii.gz"), label=str(place / "elsewhere/b.nii.gz"))
    for name in "ab":
        shutil.copy(f"elsewhere/{name}.nii.gz", "new")
    assert len(list_cases("cases.json").cases) == 2  # a list of the user's own may name any file


def test_every_entry_that_cannot_be_listed_is_named(place: Path) -> None:
    Path("data/labelsTr/a.nii.gz").unlink()
    Path("data/imagesTr/b_0000.nii.gz").rename("data/imagesTr/b_0003.nii.gz")
    Path("data/imagesTr/notes.txt").touch()
    with pytest.raises(DatasetError) as error:
        list_cases("data")
    said = {line.split(":")[0] for line in error.value.lines}
    assert said == {"case a", "case b", "data/imagesTr/notes.txt"}
    Path("data/splits_final.json").unlink()
    found = list_cases("data", strict=False)
    assert [case.id for case in found.cases] == ["c", "d"]
    assert len(found.refused) == 3
