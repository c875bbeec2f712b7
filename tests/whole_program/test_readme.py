"""What the README says, executed."""

from __future__ import annotations

import re

import numpy as np
import torch

from networks.body_net import BodyNet
from pipeline.phantoms.phantom import make_body
from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def snippets(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_chains_snippet_runs_as_it_stands(tmp_path, monkeypatch):
    import nibabel as nib

    body = make_body(3, voxel_mm=16.0)
    nib.save(nib.Nifti1Image(body.image, body.affine), tmp_path / "ct.nii.gz")
    nib.save(nib.Nifti1Image(body.label, body.affine), tmp_path / "label.nii.gz")
    monkeypatch.chdir(tmp_path)
    snippet = next(text for text in snippets("python") if "transforms.chains" in text)
    names: dict = {}
    exec(compile(snippet, "README.md", "exec"), names)
    case, trained = names["case"], names["train"](dict.fromkeys(("image",), "ct.nii.gz") | {"label": "label.nii.gz"})
    for item in (case, trained):
        assert item["image"].shape == item["label"].shape == (1, 160, 160, 256)
        assert (item["image"].dtype, item["label"].dtype) == (torch.float32, torch.uint8)
    assert -1 <= float(case["image"].min()) < float(case["image"].max()) <= 1
    inferred = names["infer"]({"image": "ct.nii.gz"})
    assert np.array_equal(inferred["image"], case["image"])


def test_the_documented_network_has_the_documented_size():
    assert "20.47 million parameters" in README
    parameters = sum(p.numel() for p in BodyNet(in_channels=1, n_classes=71, base_channels=32).parameters())
    assert 20_400_000 <= parameters < 20_500_000


def test_every_command_of_the_readme_exists():
    from pipeline.cli.main import COMMANDS

    said = set(re.findall(r"bodyseg ([a-z][a-z-]+)", README))
    assert said <= set(COMMANDS)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", README)) <= targets


def test_every_shipped_config_named_in_the_readme_is_there():
    shipped = {path.stem for path in (ROOT / "configs").rglob("*.yaml")}
    assert {"body_unet", "body_unet_light", "hippocampus", "sample"} <= shipped
    assert {"unet", "dynunet", "segresnet", "swin_unetr", "mednext", "attention_unet"} <= shipped
