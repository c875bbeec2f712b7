"""Kinds of bad settings: flags, config files, networks, names of runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml

from tests.support.hostile import RUN, TRAIN, Row


def config(content: object, *more: str) -> list[str]:
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    Path("c.yaml").write_text(text)
    return [*TRAIN[:1], "--config", "c.yaml", *TRAIN[1:], "--exp_name", "new", *more]


def network(target: object, **arguments: object) -> list[str]:
    return config({"model": {"network": {"_target_": target, **arguments}}})


def foreign_package() -> list[str]:
    Path("foreign.py").write_text("from pathlib import Path\nPath('fired').touch()\n")
    return network("foreign.Net")


def alias_bomb() -> str:
    levels = ["model: {network: {_target_: BodyNet, l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 12)]
    return ",\n  ".join(levels) + "}}"


def unlisted(word: str) -> Callable[[], list[str]]:
    return lambda: [*TRAIN, "--exp_name", word]


ROWS = [
    Row(
        "a config file that is not there",
        lambda: [*TRAIN, "--config", "no.yaml"],
        ("--config no.yaml", "there is no such file"),
    ),
    Row("a config file that is a folder", lambda: [*TRAIN, "--config", "data"], ("--config data", "cannot be read")),
    Row(
        "a config file that is no YAML",
        lambda: config("data: [1,\n\tx: {"),
        ("--config c.yaml", "cannot be read as YAML"),
    ),
    Row(
        "a config file with a list",
        lambda: config("- data\n- model\n"),
        ("--config c.yaml", "expected the groups", "found no mapping"),
    ),
    Row(
        "a config file that makes Python objects",
        lambda: config("data: !!python/object/apply:os.mkdir [fired]"),
        ("--config c.yaml", "cannot be read as YAML"),
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
    Row("a list of the wrong length", lambda: config({"data": {"flips": "x"}}), ("data.flips: expected a list",)),
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
]
