"""Read the TotalSegmentator and AbdomenAtlas layout: a folder a case, a mask a structure."""

from __future__ import annotations

from pathlib import Path

from pipeline.datasets.class_table import ClassTable, find_table, reconcile
from pipeline.datasets.dataset import Label
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.rows import Given, Listing, Row, each, list_folders, list_visible, parse_split, read_csv
from transforms.io.load import volume_kind, volume_stem


def read_totalsegmentator(root: Path, fold: int | None, given: Given) -> Listing:
    """Read CASE/ct.nii.gz or mri.nii.gz with CASE/segmentations/STRUCTURE.nii.gz (TotalSegmentator, AbdomenAtlas).

    Classes are the structures' names, sorted, over all cases, or those of `given`, labels.json or class_names.json, in
    their order; masks beyond these are passed over. CASE/combined_labels.nii.gz is read instead of the masks where
    labels.json or class_names.json says what its values mean. meta.csv (";" or ",") gives image_id and split, and the
    subject where it has such a column.
    """
    folders = {folder.name: image for folder in list_folders(root) if (image := find_scan(folder))}
    masks = {case: _masks(image.parent / "segmentations") for case, image in folders.items()}
    known = find_table(root)
    if known or given:
        table = reconcile(known, given, root)
    else:
        table = ClassTable.in_order(["background", *sorted(set().union(*masks.values()))], root)
    meta = _meta(root / "meta.csv")

    def row(case: str) -> Row:
        if fold is None:
            return Row(case, (folders[case],), None)
        combined = folders[case].parent / "combined_labels.nii.gz"
        label = combined if known and combined.is_file() else _merged(masks[case], table, case)
        return Row(case, (folders[case],), label, *_meta_row(meta, case, root / "meta.csv"))

    problems: list[str] = []
    rows = each(row, folders, problems)
    modalities = {volume_stem(image).upper().replace("MRI", "MR") for image in folders.values()}
    channel = modalities.pop() if len(modalities) == 1 else "image"
    return Listing(tuple(rows), table, (channel,), tuple(problems))


def find_scan(folder: Path) -> Path | None:
    """Return the image of a TotalSegmentator case folder, None if it has none."""
    return next(
        (path for path in list_visible(folder) if volume_stem(path) in ("ct", "mri", "mr") and volume_kind(path)), None
    )


def is_segmented(folder: Path) -> bool:
    return (folder / "segmentations").is_dir() or (folder / "combined_labels.nii.gz").is_file()


def _masks(folder: Path) -> dict[str, Path]:
    return {volume_stem(path): path for path in list_visible(folder) if volume_kind(path)}


def _merged(masks: dict[str, Path], table: ClassTable, case: str) -> Label | None:
    if masks and (missing := [name for name in table.names[1:] if name not in masks]):
        raise DatasetError(
            f"case {case}: expected a mask for each of {len(table.names) - 1} structures, found none for {missing[:5]}"
            "; write an empty mask where it is absent from the body, or leave the class out of data.class_names"
        )
    return tuple((c, masks[name]) for c, name in enumerate(table.names) if c) if masks else None


def _meta(path: Path) -> dict[str, dict[str, str]]:
    """Return meta.csv by image_id; empty where there is none."""
    if not path.is_file():
        return {}
    rows = read_csv(path)
    if not rows or "image_id" not in rows[0]:
        raise DatasetError(f"{path}: expected a column image_id, found {list(rows[0]) if rows else 'no rows'}")
    return {row["image_id"]: row for row in rows}


def _meta_row(meta: dict[str, dict[str, str]], case: str, path: Path) -> tuple[str | None, str | None]:
    """Return split and subject of a case."""
    if meta and case not in meta:
        raise DatasetError(f"case {case}: expected a row in {path}, found none; add it or move the folder away")
    row = meta.get(case, {})
    return parse_split(row.get("split"), case, path), row.get("subject") or row.get("subject_id") or None
