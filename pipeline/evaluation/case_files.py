"""List predictions or labels by case: a data set, label maps in a folder, a folder of masks a case, or one case."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.console.text import first_lines, one_line
from pipeline.datasets.class_table import ClassTable, find_table, means_ignore, refuse_ignore_mask
from pipeline.datasets.dataset import Label
from pipeline.datasets.errors import DatasetError
from pipeline.datasets.file_index import FileIndex
from pipeline.datasets.listing import find_dataset
from pipeline.datasets.pairs import pair_of_folders
from pipeline.datasets.totalsegmentator import NOT_MASKS
from pipeline.evaluation.header_classes import Headers, read_headers
from pipeline.evaluation.label_maps import is_seg
from pipeline.evaluation.options import EvaluationError, Kind
from pipeline.evaluation.records import notes_on_networks, read_records, table_of_records
from transforms.io.detached import is_data_half
from transforms.io.dicom_seg import is_dicom_seg
from transforms.io.errors import VolumeError
from transforms.io.load import volume_kind, volume_stem


@dataclass(frozen=True)
class CaseFiles:
    """The predictions, or the labels, by case."""

    kind: Kind
    root: Path
    """Where they were listed."""
    files: Mapping[str, Label]
    """By case."""
    table: ClassTable | None
    """Their classes, where something names them."""
    subjects: Mapping[str, str] = field(default_factory=dict)
    """By case, whose scan it is; empty where no data set says so."""
    images: Mapping[str, Path] = field(default_factory=dict)
    """By case, the first image to which its label belongs; empty where no data set says so."""
    is_one_case: bool = False
    """One case was named rather than a folder of cases: it may be called otherwise than its counterpart."""
    are_masks: bool = False
    """Their classes have the names of mask files, and no values that a label map could share."""
    headers: Headers = field(default_factory=Headers)
    """What the files' own headers say of their classes (.seg.nrrd, DICOM SEG)."""
    missing_masks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By case, structures of other cases for which it has no mask."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """By case of a data set, why its files cannot serve."""
    annotated: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By case, names of the classes that its label annotates, where these are not all."""
    notes: tuple[str, ...] = ()
    """What a reader has to know about where they come from."""


def list_case_files(path: Path | str, kind: Kind, *, follow_links: bool = False) -> CaseFiles:
    """List the cases at a path: as a data set (labels only), label maps, folders of masks, or one case of these.

    Args:
        path: a file or folder.
        kind: what is expected there.
        follow_links: as `list_cases` has it, where the labels are a data set.

    Raises:
        VolumeError, DatasetError: nothing there that can be listed.
        EvaluationError: two files of one case.
    """
    path = Path(path)
    if not path.exists():
        raise VolumeError("missing_file", path, f"{kind}s", "no such file or folder", "correct the path")
    try:
        may_be_dataset = kind == "label" and not _is_label_map(path)
        dataset = find_dataset(path, follow_links=follow_links) if may_be_dataset else None
    except DatasetError as error:
        if error.kind != "no_class_names":
            raise
        if two := pair_of_folders(path, FileIndex()):  # whoever trains has to name the classes, not who scores
            return list_case_files(two[1], kind)
        remedy = 'write labels.json beside the data ({"background": 0, "liver": 1, …})'
        raise DatasetError(error.kind, error.where, error.expected, error.found, remedy) from error
    if dataset is not None:
        labelled = [case for case in dataset.cases if case.label is not None]
        files = {case.id: case.label for case in labelled if case.label is not None}
        headers = read_headers(files, dataset.classes, kind)
        subjects = {case.id: case.subject for case in labelled}
        images = {case.id: case.image[0] for case in labelled}
        without_image = [error.case for error in dataset.refused if error.kind == "missing_image"]
        lines = [f"left out, since the data set has no image of it: case {case}" for case in without_image]
        refused = {error.case: str(error) for error in dataset.refused if error.kind != "missing_image"}
        notes = tuple(first_lines(lines, "and {} more cases without an image"))
        has_masks = any(isinstance(label, tuple) for label in files.values())
        own_table = find_table(path) if has_masks and path.is_dir() else None
        return CaseFiles(
            kind,
            path,
            files,
            dataset.classes,
            subjects,
            images,
            are_masks=has_masks and not (own_table and own_table.states_values),
            headers=headers,
            refused=refused,
            annotated=dataset.annotated_names(),
            notes=notes,
        )
    label_maps = _label_maps(path)
    folders = {} if label_maps else _mask_folders(path)
    if folders:
        return _masks_by_case(kind, path, folders)
    files = _by_case(label_maps, path)
    table, notes = _table_beside(path, files, kind)
    headers = read_headers(files, table, kind)
    return CaseFiles(kind, path, files, headers.table, is_one_case=path.is_file(), headers=headers, notes=notes)


def _label_maps(path: Path) -> list[Path]:
    """The volumes that lie right in a folder, or the file itself; none in the folder of a single case's masks."""
    if path.is_dir() and (path.name == "segmentations" or (path / "segmentations").is_dir()):
        return []
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in files if _is_label_map(file)]


def _is_volume(file: Path) -> bool:
    is_candidate = not file.name.startswith(".") and not is_data_half(file)
    return is_candidate and file.is_file() and volume_kind(file) is not None


def _is_label_map(file: Path) -> bool:
    if file.suffix.lower() == ".dcm":
        return file.is_file() and is_dicom_seg(file)
    return _is_volume(file)


def _by_case(volumes: Iterable[Path], path: Path) -> dict[str, Label]:
    found: dict[str, Path] = {}
    for file in volumes:
        case = (file.stem if is_seg(file) else volume_stem(file)).removesuffix(".seg")
        if case not in found:
            found[case] = file
            continue
        # A result is often written in several formats; the NIfTI is taken, the others are passed over.
        kept, other = found[case], file
        if other.name == f"{case}.nii.gz":
            kept, other = other, kept
        if kept.name != f"{case}.nii.gz" or other.name not in (f"{case}.seg.nrrd", f"{case}.dcm"):
            raise EvaluationError(f"{found[case]} and {file} are both of case {case}; keep one of them")
        found[case] = kept
    if not found:
        expected = "label maps (CASE.nii.gz, CASE.nrrd, CASE.mha, CASE.dcm) or folders of masks (CASE/liver.nii.gz, …)"
        raise VolumeError("missing_file", path, expected, "none", "name the folder that holds them")
    return dict(found)


def _mask_folders(path: Path) -> dict[str, Path]:
    """Folders that hold masks, by case: CASE/ or CASE/segmentations/; a single case's folder by its own name."""
    if not path.is_dir():
        return {}
    if path.name == "segmentations":
        return {path.resolve().parent.name: path}
    if (path / "segmentations").is_dir():
        return {path.resolve().name: path / "segmentations"}
    below = [folder for folder in sorted(path.iterdir()) if folder.is_dir() and not folder.name.startswith(".")]
    inner = {case.name: case / "segmentations" if (case / "segmentations").is_dir() else case for case in below}
    return {case: folder for case, folder in inner.items() if mask_files(folder)}


def mask_files(folder: Path) -> dict[str, Path]:
    """The masks in a folder, by the names of their structures."""
    files = {volume_stem(file): file for file in sorted(folder.iterdir()) if _is_volume(file)}
    return {name: file for name, file in files.items() if name.lower() not in NOT_MASKS}


def _masks_by_case(kind: Kind, path: Path, folders: Mapping[str, Path]) -> CaseFiles:
    """Classes are the names of the masks over all cases, sorted, or those that records give to the files; where masks
    overlap the later one counts."""
    masks, records = {}, []
    for case, folder in folders.items():
        own_folder = folder.resolve().parent if folder.name == "segmentations" else folder.resolve()
        found = read_records(own_folder.parent, [own_folder.name])
        records += found
        class_of = found[0].class_of_mask if found else {}
        masks[case] = {class_of.get(name, name): file for name, file in mask_files(folder).items()}
        if kind == "label":
            remedy = "move it away, or score against label maps and name its value in a labels.json beside them"
            refuse_ignore_mask(masks[case], remedy, case)
    names = sorted(name for name in set().union(*masks.values()) if not means_ignore(name))
    if not names:
        expected = "a mask a structure (liver.nii.gz, …)"
        raise VolumeError("missing_file", path, expected, "none", "name the folder that holds them")
    files: dict[str, Label] = {}
    missing: dict[str, tuple[str, ...]] = {}
    for case, found_masks in masks.items():
        files[case] = tuple((c, found_masks[name]) for c, name in enumerate(names, start=1) if name in found_masks)
        if not found_masks.keys() >= set(names):
            missing[case] = tuple(name for name in names if name not in found_masks)
    own_folders = {folder for inner in folders.values() for folder in (inner, inner.parent)}
    return CaseFiles(
        kind,
        path,
        files,
        ClassTable.in_order(["background", *names], path),
        is_one_case=len(folders) == 1 and path in own_folders,
        are_masks=True,
        missing_masks=missing if kind == "prediction" else {},
        annotated={} if kind == "prediction" else {case: frozenset(masks[case]) for case in missing},
        notes=notes_on_networks(records, kind),
    )


def _table_beside(path: Path, cases: Iterable[str], kind: Kind) -> tuple[ClassTable | None, tuple[str, ...]]:
    """The classes as the files' own folder names them, or the records that predict writes, with notes on these; for
    labels, whose names often lie beside their folder, also the folder above."""
    folder = path if path.is_dir() else path.parent
    table = find_table(folder)
    notes: tuple[str, ...] = ()
    if table is None:
        records = read_records(folder, cases)
        table, notes = table_of_records(records), notes_on_networks(records, kind)
    if table is None and kind == "label":
        try:
            table = find_table(folder.parent)
        except DatasetError as error:  # it may have nothing to do with these files
            notes = (*notes, one_line(f"passed over, since it names no classes of these labels: {error}"))
    return table, notes
