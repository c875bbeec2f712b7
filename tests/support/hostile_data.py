"""Kinds of bad data sets: their own files, links, lists, ids; and every kind that an inspection of cases finds."""

from __future__ import annotations

from pathlib import Path

from tests.support.hostile import TRAIN, Row, edit_json, listed, write_json
from tests.support.volumes import BAD, CLASSES, Bad, Folder


def description(**changes: object) -> list[str]:
    edit_json("data/dataset.json", **changes)
    return ["check", "data", "--no_measure"]


def decathlon(image: object) -> list[str]:
    for folder in Path("data").glob("imagesTr/*"):
        folder.rename(folder.with_name(folder.name.replace("_0000", "")))
    entries = [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in "abc"]
    return description(training=[*entries, {"image": image, "label": "labelsTr/d.nii.gz"}])


def csv(text: str | bytes) -> list[str]:
    Path("cases.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    write_json(Path("labels.json"), CLASSES)
    return ["check", "cases.csv", "--no_measure"]


def text_file(path: str, text: str | bytes, *arguments: str) -> list[str]:
    Path(path).write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(arguments) or ["check", "data", "--no_measure"]


def in_data(path: str, target: str, *arguments: str) -> list[str]:
    """Put a link in the place of a file of the data set."""
    Path(path).rename("outside.nii.gz")
    Path(path).symlink_to(target)
    return list(arguments) or ["check", "data", "--no_measure"]


def linked_folder() -> list[str]:
    Path("data/labelsTr").rename("elsewhere")
    Path("data/labelsTr").symlink_to(Path("elsewhere").resolve())
    return ["check", "data", "--no_measure"]


def of_check(bad: Bad) -> Row:
    def spoil() -> list[str]:
        Path("set").mkdir()
        folder = Folder(Path("set"))
        bad.spoil(folder)
        folder.write()
        return ["check", "set/cases.json", "--no_measure"]

    case = (f"case {bad.case}",) if bad.case else ()
    words = (*case, bad.expected, bad.found, bad.remedy)
    return Row(bad.name, spoil, words, 2 if bad.severity == "error" else 1)


ROWS = [of_check(bad) for bad in BAD] + [
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
        "a label value that is not a number",
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
        lambda: text_file("data/imagesTr/notes.nii.gz", ""),
        ("notes.nii.gz", "a name like CASE_0000.nii.gz"),
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
]
