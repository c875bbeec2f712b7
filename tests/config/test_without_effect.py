"""Settings that change nothing are named, and those that are used are not."""

from __future__ import annotations

import re

import pytest

from pipeline.config.without_effect import without_effect
from tests.support.settings import settings

PATCHES = "--data.mode patch --data.spacing_mm 1 1 1 --data.target_size 16 16 16 --data.patch_growth [8,8,8,4,9]"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--max_epochs 3", "training.warmup_epochs is 5 but training.max_epochs 3: .* never reaches training.lr"),
        ("--base_channels 64 --model.network SegResNet", "model.base_channels is BodyNet's and changes nothing in Seg"),
        ("--base_channels 24 --model.network NARROW", "model.base_channels is 24 and 16 in model.network, which"),
        (f"{PATCHES} --max_epochs 9", "patch_growth takes 9 epochs but training.max_epochs is 9: .* never trained on"),
        (PATCHES.replace("8,8,8,4", "16,16,16,2"), "data.patch_growth changes nothing"),
        ("--data.folds 5 --data.split_shares 90 10 0", "data.split_shares change nothing with data.folds 5"),
        ("--data.intensity mr --data.window 0 80", "data.window has no effect with data.intensity mr"),
        ("--data.intensity mr --data.mean_std 40 50", "data.mean_std has no effect with data.intensity mr"),
        ("--data.intensity ct --data.percentiles 1 99", "data.percentiles has no effect with data.intensity ct"),
    ],
)
def test_a_setting_that_changes_nothing_is_named(arguments, words):
    narrow = '{"_target_":"pasco.models.body_net.BodyNet","base_channels":16}'
    flags = arguments.replace("SegResNet", '{"_target_":"SegResNet"}').replace("NARROW", narrow).split()
    (note,) = without_effect(settings("--dataset_root", "d", *flags))
    assert re.search(words, note)


def test_settings_that_are_used_are_not_called_without_effect():
    used = "--base_channels 64 --data.window 0 80 --data.percentiles 1 99 --max_epochs 5 --warmup_epochs 5"
    assert without_effect(settings("--dataset_root", "d", *used.split())) == ()
    assert without_effect(settings("--dataset_root", "d", *PATCHES.split(), "--max_epochs", "10")) == ()
    own = ["--base_channels", "64", "--model.network", '{"_target_":"networks.body_net.BodyNet"}']
    assert without_effect(settings("--dataset_root", "d", *own)) == ()
