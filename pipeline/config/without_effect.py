"""Which settings change nothing beside the others, though they are allowed."""

from __future__ import annotations

from collections.abc import Collection

from networks import BODY_NET
from pipeline.config.settings import Config, DataConfig, ModelConfig


def unused_scaling(data: DataConfig, ways: Collection[str]) -> tuple[str, ...]:
    """Names of the settings with numbers for a way of scaling intensities (ct, mr) that no channel has; none where a
    channel's is unknown."""
    way_of = {"window": "ct", "mean_std": "ct", "percentiles": "mr"}
    given = [name for name in way_of if getattr(data, name) not in ("auto", "none", getattr(DataConfig, name))]
    return tuple(name for name in given if "unknown" not in ways and way_of[name] not in ways)


def without_effect(config: Config) -> tuple[str, ...]:
    """Say which settings that differ from their defaults change nothing, each in a sentence with what to do."""
    data, model, training = config.data, config.model, config.training
    notes = []
    if not model.is_body_net and model.base_channels != ModelConfig.base_channels:
        notes.append(f"model.base_channels is BodyNet's and changes nothing in {model.network_name}; remove it")
    own_width = (model.network or {}).get("base_channels", model.base_channels)
    by_other_path = model.network is not None and str(model.network["_target_"]) not in ("BodyNet", BODY_NET)
    # By BodyNet's own path the two are refused
    if model.is_body_net and by_other_path and model.base_channels not in (own_width, ModelConfig.base_channels):
        notes.append(
            f"model.base_channels is {model.base_channels} and {own_width} in model.network, which counts; remove one "
            "of the two"
        )
    if data.folds and data.split_shares != DataConfig.split_shares:
        notes.append(f"data.split_shares change nothing with data.folds {data.folds}; remove one of the two")
    if data.intensity != "auto":
        for name in unused_scaling(data, (data.intensity,)):
            notes.append(f"data.{name} has no effect with data.intensity {data.intensity}; remove one of the two")
    if training.warmup_epochs > training.max_epochs:
        notes.append(
            f"training.warmup_epochs is {training.warmup_epochs} but training.max_epochs {training.max_epochs}: the "
            f"learning rate never reaches training.lr; lower --warmup_epochs or train longer"
        )
    if data.patch_growth and all(stage[:4] == [*data.target_size, data.batch_size] for stage in data.patch_growth):
        notes.append("data.patch_growth changes nothing: its patches and batches are the final ones; remove it")
    if training.freeze_epochs >= training.max_epochs:
        notes.append(
            f"training.freeze_epochs is {training.freeze_epochs} and training.max_epochs {training.max_epochs}: the "
            "encoder is never trained; lower training.freeze_epochs unless that is meant"
        )
    grown = sum(stage[4] for stage in data.patch_growth)
    if grown >= training.max_epochs:
        notes.append(
            f"data.patch_growth takes {grown} epochs but training.max_epochs is {training.max_epochs}: the network is "
            f"never trained on data.target_size, the window it is used with; shorten the stages or train longer"
        )
    return tuple(notes)
