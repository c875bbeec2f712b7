"""Help and errors of the parser: no Python types, the flag that was meant, what is expected."""

from __future__ import annotations

import re

import pytest

from pipeline.cli import predict
from pipeline.cli.arguments import with_value
from pipeline.cli.main import COMMANDS, main

SETTINGS = "train --dataset_root d"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (f"{SETTINGS} --cache_dir x", "unknown flag --cache_dir; did you mean --data.cache_dir?"),
        (f"{SETTINGS} --batchsize 2", "unknown flag --batchsize; did you mean --batch_size?"),
        ("predict r s --out=o", "unknown flag --out; did you mean --output?"),
        (
            "predict r s --output o --tta diagonal",
            "--tta: expected auto or some of the letters x, y and z, found 'diagonal'",
        ),
        ("predict --tta q r s --output o", "--tta: expected auto or some of the letters x, y and z, found 'q'"),
        ("predict --tta x,q r s --output o", "--tta: expected auto or some of the letters x, y and z, found 'x,q'"),
        ("predict r s --tta -1 --output o", "--tta: expected auto or some of the letters x, y and z, found '-1'"),
        (f"{SETTINGS} --data_aug maybe", "--data_aug: expected true, false, yes or no, found 'maybe'"),
        ("check d --data.flips left", "data.flips element 1: expected a whole number, found 'left'"),
        (f"{SETTINGS} --zzz", "unknown flag --zzz; bodyseg train --help lists the known ones"),
        ("predict r s --ouput=o", "unknown flag --ouput; did you mean --output?"),
        ("train d --lr 1", "unexpected 'd'; did you mean --dataset_root d?"),
        ("evaluate a b", "unexpected 'b'; bodyseg evaluate --help explains what is expected"),
        (f"{SETTINGS} --lr fast", "training.lr: expected a number, found 'fast'"),
        (f"{SETTINGS} --data.window a b", "data.window element 1: expected a number or auto, found 'a'"),
        (f"{SETTINGS} --n_gpus x", "training.n_gpus: expected a whole number, found 'x'"),
        (f"{SETTINGS} --precision 8", "training.precision: expected one of 32, 16, bf16, found '8'"),
        (f"{SETTINGS} --target_size a b c", "data.target_size element 1: expected a whole number, found 'a'"),
        (f"{SETTINGS} --target_size 1 2", "--data.target_size/--target_size: expected 3 values"),
        (f"{SETTINGS} --data.augmentation 5", "data.augmentation: expected a mapping such as '{name: value}', found"),
        (f"{SETTINGS} --data.augmentation {{1:2}}", "data.augmentation: expected a decimal number, found 1:2; write"),
        (f"{SETTINGS} --data.label_remap {{7:", "data.label_remap: expected a mapping such as '{name: value}', found"),
        (f"{SETTINGS} --data.label_remap {{08:␣a}}", "data.label_remap: expected a decimal number, found 08; write"),
        (f"{SETTINGS} --data.label_remap {{7:␣a,7:␣b}}", "data.label_remap: 7 is given twice; the last would silently"),
        (
            f"{SETTINGS} --data.sided_pairs [[1,2]]",
            "expected a list of lists such as '[[name, name]]', found '[[1, 2]]'",
        ),
        (f"{SETTINGS} --data.sided_pairs [1]", "expected a list of lists such as '[[name, name]]', found '[1]'"),
        (f"{SETTINGS} --seed=", "training.seed: expected a whole number, found ''"),
        (f"{SETTINGS} --data.fill_nan=", "data.fill_nan: expected a number, found ''"),
        (f"{SETTINGS} --lr 1{'0' * 400}", "1" + "0" * 19 + "…: expected numbers below 1e308, found over 308 digits"),
        (f"{SETTINGS} --lr", "--training.lr/--lr: expected a value after it"),
        (f"{SETTINGS} --resume=maybe", "--resume: expected no value, found 'maybe'"),
        ("evaluate --surface x", "--surface: expected one of voxels, area, none, found 'x'"),
        (
            "predict r s --output=",
            '--output: expected a path, found "" (an empty shell variable?); the working folder is .',
        ),
        ("plot r --output=", '--output: expected a path, found "" (an empty shell variable?); the working folder is .'),
        ("sample s --n_cases 010", "--n_cases: expected a decimal number without zeros in front, found 010"),
        (
            "predict r s --output o --roi 0x10 16 16",
            "--roi: expected a decimal number without zeros in front, found 0x10",
        ),
        (
            "evaluate a --tolerance_mm 1:30",
            "--tolerance_mm: expected a decimal number without zeros in front, found 1:30",
        ),
        ("sample s --n_cases x", "--n_cases: expected a whole number, found 'x'"),
        ("check-geometry --keep_aspect=maybe", "--keep_aspect: expected true or false, found 'maybe'"),
    ],
)
def test_a_wrong_argument_is_explained_in_one_plain_line(arguments, words, capsys):
    assert main([word.replace("␣", " ") for word in arguments.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize(
    "given",
    [
        "run scan1 scan2 --output o --roi 9 9 9 --json",
        "run --output o --roi 9 9 9 --json scan1 scan2",
        "--output=o run --json scan1 --roi 9 9 9 scan2",
        "run --tta --json --output o scan1 --roi 9 9 9 scan2",
    ],
)
def test_paths_may_stand_anywhere_among_the_flags(given):
    parser = predict._parser()
    found = parser.parse_args(with_value(given.split(), "--tta", "auto|[xyz,]+", "auto", "auto or axes"))
    assert [str(path) for path in found.paths] == ["run", "scan1", "scan2"]
    assert (str(found.output), found.roi, found.json) == ("o", [9, 9, 9], True)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_help_names_a_python_type(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert not re.search(r"type:|<class|NoneType|Union|Literal|\bnull\)|\| None|dict\[", text)


def test_help_says_the_defaults_that_say_something(capsys):
    assert main(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "every volume is resized to. (default: 160 160 256)" in text
    assert re.search(r"--data.fold FOLD [^(]*\(default: 0\)", text)
    assert "(default: None)" not in text
    assert "(default: False)" not in text
