"""Scans that look like one subject's are named, and a rule puts them together."""

from __future__ import annotations

import pytest

from pipeline.check import check
from pipeline.config.settings import ConfigError, DataConfig
from pipeline.datasets.listing import list_cases
from pipeline.datasets.splits import split_by_subject
from pipeline.datasets.subjects import subject_by_pattern, suggest_pattern, suspect_subjects
from tests.support.datasets import nnunet, pairs, refused, write_json
from tests.support.volumes import configured


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("pat{}_t0", "pat{}_t1"),
        ("pat{}_v1", "pat{}_v2"),
        ("pat{}_visit1", "pat{}_visit2"),
        ("OAS3000{}_0800", "OAS3000{}_0801"),
        ("P0{}-20230131", "P0{}-20240612"),
        ("P0{}_2023-01-31", "P0{}_2024-06-12"),
        ("P0{}_baseline", "P0{}_followup"),
        ("BraTS-GLI-0000{}-000", "BraTS-GLI-0000{}-001"),
        ("A{}_ses-01", "A{}_ses-02"),
        ("P0{}_31-01-2023", "P0{}_12.06.2024"),
        ("P0{}_230131", "P0{}_20240612T1015"),
        ("P0{}_2023-01", "P0{}_12Jun2024"),
        ("P0{}_bl", "P0{}_FU1"),
        ("P0{}_preRT", "P0{}_post_op"),
        ("P0{}_6mo", "P0{}_12mo"),
        ("P0{}_1st", "P0{}_2nd"),
        ("P0{} Visit 1", "P0{} Visit 2"),
        ("P0{}_visitA", "P0{}_visitB"),
        ("t0_P0{}", "t1_P0{}"),
        ("20230131_P0{}", "20240612_P0{}"),
        ("P0{}_t0_ct", "P0{}_t1_ct"),
        ("P0{}_v1_20230131", "P0{}_v2_20240612"),
        ("002_S_010{}_bl", "002_S_010{}_m12"),
        ("OAS2_010{}_MR1", "OAS2_010{}_MR2"),
        ("Patient-00{}_week-000-1", "Patient-00{}_week-044"),
        ("patient00{}_frame01", "patient00{}_frame12"),
        ("P0{}_L", "P0{}_R"),
        ("P0{}a", "P0{}b"),
        ("P0{}", "P0{}_rescan"),
    ],
)
def test_visits_dates_and_second_numbers_are_suspected(first, second):
    cases = [name.format(number) for number in range(3) for name in (first, second)]
    suspected = suspect_subjects(cases)
    groups = [{first.format(number), second.format(number)} for number in range(3)]
    assert [set(group.cases) for group in suspected] == groups
    pattern = suggest_pattern(suspected, cases)
    assert pattern is not None
    whose = [subject_by_pattern(case, pattern) for case in cases]
    assert whose[::2] == whose[1::2]  # as advised: a subject's scans together, and no two subjects
    assert len(set(whose)) == 3


@pytest.mark.parametrize(
    "cases",
    [
        [f"hippocampus_{n:03d}" for n in range(9)],
        [f"amos_{n:04d}" for n in range(9)],
        [f"s{n:04d}" for n in range(9)],
        [f"FLARE22_Tr_{n:04d}" for n in range(9)],
        [f"LUNG1-{n:03d}" for n in range(9)],
        [f"case_{n:05d}" for n in range(9)],
        [f"IXI00{n}-Guys-082{n}-T1" for n in range(9)],
        ["ct_scan_1", "ct_scan_2", "ct_scan_3"],
        [f"s000{n}_ct" for n in range(4)],
        [f"Brats18_TCIA0{n}_13{n}_1" for n in range(9)],
        [f"ct_train_100{n}_image" for n in range(9)],
        [f"{modality}_{n}" for modality in ("ct", "mr") for n in range(9)],
        ["a", "b", "c"],
        [f"train_s{n}" for n in range(30)] + [f"test_s{n}" for n in range(30)],
    ],
    ids=lambda cases: cases[0],
)
def test_numbered_cases_are_not_suspected(cases):
    assert suspect_subjects(cases) == []


def test_a_suggested_pattern_puts_together_what_was_suspected():
    for cases, pattern in (
        (["pat0_t0", "pat0_t1", "pat1_t0"], r"(.+)_t[0-9]+"),
        (["pat0_t0", "pat0_t1", "other"], r"(.+?)(?:_t[0-9]+)?"),
        (["P1-20230131", "P1-20240131", "P2-20240131"], r"(.+)-[0-9]+"),
        (["pat0_t0", "pat0_t1", "pat1_visit0", "pat1_visit1"], r"(.+)(?:_t[0-9]+|_visit[0-9]+)"),
        (["PETCT_00000064", "PETCT_00000064_1", "PETCT_00000065"], r"(.+?)(?:_[0-9])?"),
        (["P1_pre", "P1", "pre_P2", "P2"], None),
    ):
        assert suggest_pattern(suspect_subjects(cases), cases) == pattern


def test_scans_of_one_subject_are_a_warning_until_a_rule_or_a_column_says_whose_they_are(tmp_path):
    cases = [f"pat{number // 2}_t{number % 2}" for number in range(20)]
    pairs(tmp_path, cases=cases)
    ((warning),) = list_cases(tmp_path).warnings
    assert warning.kind == "suspected_subjects"
    assert "10 groups" in warning.found
    assert "pat0 (pat0_t0, pat0_t1)" in warning.found
    assert "'(.+)_t[0-9]+'" in warning.remedy
    found = list_cases(tmp_path, subject_pattern=r"(.+)_t\d+")
    assert found.warnings == ()
    for seed in range(10):
        split = split_by_subject(found.cases, seed=seed)
        assert all(split.of(f"pat{number}_t0") == split.of(f"pat{number}_t1") for number in range(10))
    rows = [f"{case},pat{case[3]},images/{case}.nii.gz,labels/{case}.nii" for case in cases]
    (tmp_path / "cases.csv").write_text("\n".join(["case,subject,image,label", *rows]))
    assert list_cases(tmp_path).warnings == ()


def test_a_half_filled_subject_column_does_not_silence_the_suspicion(tmp_path):
    cases = [f"p{number // 2}_t{number % 2}" for number in range(20)]
    pairs(tmp_path, cases=cases)

    def warned(subject_of) -> list[str]:
        rows = [f"{case},{subject_of(case)},images/{case}.nii.gz,labels/{case}.nii" for case in cases]
        (tmp_path / "cases.csv").write_text("\n".join(["case,subject,image,label", *rows]))
        return [warning.remedy for warning in list_cases(tmp_path, **options).warnings]

    options = {}
    (remedy,) = warned(lambda case: case[:2] if case.endswith("t0") else "")
    assert remedy == "give every case its subject: none is stated for p0_t1, p1_t1, p2_t1, p3_t1 and 6 more"
    (remedy,) = warned(lambda case: "")
    assert "data.subject_pattern" in remedy
    assert warned(lambda case: case[:2]) == []
    assert warned(lambda case: case) == []  # a column may say that all of them are different subjects
    options = {"subject_pattern": r"(.+)_t\d+"}
    assert warned(lambda case: "") == []
    assert warned(lambda case: case[:2] if case.endswith("t0") else "") == []
    assert len(warned(lambda case: f"patient{case[1]}" if case.endswith("t0") else "")) == 1  # not what the rule says


def test_one_subject_of_many_visits_does_not_silence_the_suspicion():
    cases = [f"p1_t{visit}" for visit in range(21)] + ["p2_t0", "p2_t1"]
    assert [(group.name, len(group.cases)) for group in suspect_subjects(cases)] == [("p1", 21), ("p2", 2)]


def test_check_and_train_take_the_rule_from_the_settings(tmp_path):
    pairs(tmp_path, cases=("pat0_t0", "pat0_t1", "pat1_t0", "pat2_t0"))
    found = check(tmp_path, workers=1)
    assert [f.severity for f in found.findings if f.kind == "suspected_subjects"] == ["warning"]
    ruled = check(configured(tmp_path, data={"subject_pattern": "(.+)_t[0-9]"}), costs=False, workers=1)
    assert "suspected_subjects" not in {f.kind for f in ruled.findings}
    assert ruled.fingerprint.n_subjects == 3


def test_an_own_split_that_keeps_visits_together_is_not_suspected(tmp_path):
    nnunet(tmp_path, cases=("pat0_t0", "pat0_t1", "pat1_t0", "pat1_t1"))
    together = [{"train": ["pat0_t0", "pat0_t1"], "val": ["pat1_t0", "pat1_t1"]}]
    write_json(tmp_path / "splits_final.json", together)
    assert list_cases(tmp_path).warnings == ()
    apart = [{"train": ["pat0_t0", "pat1_t0"], "val": ["pat0_t1", "pat1_t1"]}]
    write_json(tmp_path / "splits_final.json", apart)
    assert [warning.kind for warning in list_cases(tmp_path).warnings] == ["suspected_subjects"]
    refused(tmp_path, "subject pat0 in two", subject_pattern="(.+)_t[0-9]")


def test_a_rule_that_does_not_fit_is_refused(tmp_path):
    pairs(tmp_path, cases=("pat0_t0", "other"))
    refused(tmp_path, "case other", "data.subject_pattern", subject_pattern="(.+)_t[0-9]")
    for pattern in ("(", "no_group"):
        with pytest.raises(ConfigError, match=r"data\.subject_pattern"):
            DataConfig(subject_pattern=pattern)


def test_subjects_that_differ_in_spelling_alone_are_a_warning(tmp_path):
    """Each would be a patient of its own, and his scans might train and validate."""
    made = pairs(tmp_path, cases="abcd")

    def warned(*columns):
        lines = [
            f"images/{case}.nii.gz,labels/{case}.nii.gz,{column}" for case, column in zip("abcd", columns, strict=True)
        ]
        (made / "cases.csv").write_text("\n".join(["image,label,subject,split", *lines]))
        return [str(warning) for warning in list_cases(made, "list").warnings]

    (line,) = warned("P07,", "p7,", "P8,", "P9,")
    assert "one spelling for each subject, found 'P07' (a) and 'p7' (b); spell them alike" in line
    assert len(warned("P07,train", "p7,val", "P8,train", "P9,val")) == 1
    assert warned("P07,train", "p7,train", "P8,train", "P9,val") == []
    assert warned("P07,", "P7a,", "P70,", "P17,") == []
    assert warned("1 12,", "11 2,", "112,", "1 1 2,") == []
    assert len(warned("1 02,", "1  2,", "12,", "102,")) == 1
