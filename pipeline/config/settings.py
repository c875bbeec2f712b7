"""What a person can set: five groups of frozen dataclasses, their defaults, and which settings contradict each other.

The docstring under each field is its help text. Imports no torch, so that `--help` answers at once.
"""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from pipeline.config.trackers import TrackerName, read_trackers
from transforms.axes import LEFT_RIGHT
from transforms.io.limits import MAX_VOXELS

Precision = Literal["32", "16", "bf16"]
LayoutName = Literal["auto", "nnunet", "msd", "totalsegmentator", "pairs", "folders", "list"]

LEAST_EDGE = 8
"""Voxels of data.target_size along every axis, at least."""

LEAST_GROWING_EDGE = 4
"""Voxels of the patches of data.patch_growth along every axis, at least."""


class ConfigError(ValueError):
    """A setting that is unknown, of the wrong type, or contradicts another; one line that names it."""

    is_input_error = True


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def _check_least(group: str, settings: Any, least: Mapping[str, int]) -> None:
    """Refuse whole numbers below the least that each of these settings of a group may be; None may stand for any."""
    for name, number in least.items():
        value, words = getattr(settings, name), f"at least {number}" if number else "0 or more"
        require(value is None or value >= number, f"{group}.{name} must be {words}, got {value}")


def _checked_remap(remap: Mapping[Any, Any]) -> dict[int, int | str]:
    """Values of label files as whole numbers, which JSON writes as texts, to class names or indices."""
    for value, target in remap.items():
        is_right = re.fullmatch(r"-?\d{1,9}", str(value)) and type(target) in (int, str)
        require(
            bool(is_right),
            "data.label_remap: expected whole numbers and for each a class name or index, such as "
            f"{{7: liver, 255: 0}}, found {value!r}: {target!r}",
        )
    return {int(value): target for value, target in remap.items()}


def _check_pattern(pattern: str) -> None:
    """Refuse a data.subject_pattern that is not a regular expression with a group."""
    try:
        n_groups = re.compile(pattern).groups
    except re.error as error:
        raise ConfigError(f"data.subject_pattern: expected a regular expression, found {pattern!r} ({error})") from None
    require(
        not pattern or n_groups >= 1,
        f"data.subject_pattern: expected a group (...) around the subject, such as (.+)_t[0-9]+, found {pattern!r}",
    )


@dataclass(frozen=True)
class ExperimentConfig:
    """What the run is called and where its folder goes."""

    name: str = "body_unet"
    """First part of the run folder's name."""
    log_dir: str = "logs"
    """Folder that holds the run folders."""
    logger: tuple[TrackerName | dict[str, Any], ...] = ()
    """Trackers beside TensorBoard: csv, mlflow, wandb, each by its name or with its options, such as
    {mlflow: {tracking_uri: "http://host:5000"}}; they write to this machine alone unless options say otherwise
    (docs/trackers.md)."""

    def __post_init__(self) -> None:
        try:
            read_trackers(self.logger)
        except ValueError as error:
            raise ConfigError(f"experiment.logger: {error}") from None


@dataclass(frozen=True)
class DataConfig:
    """Which volumes are read and how they are prepared."""

    dataset_root: str | tuple[str, ...] = ""
    """Folder of the data set, or a JSON/CSV file that lists its cases; or several, whose classes are joined by name: a
    class that one of them does not name is not annotated in its cases."""
    layout: LayoutName | tuple[LayoutName, ...] = "auto"
    """How the data set is laid out; auto recognises it. Of several data sets one for all, or one each."""
    folds: int = 0
    """Divide the cases by subject into so many folds, of which data.fold validates and the others train (`bodyseg
    cross-validate` trains them all); a data set's own folds come first, its test cases stay apart; 0 = one split."""
    fold: int = 0
    """Which fold is the validation set, of data.folds or of a data set that brings its own."""
    split_file: str = ""
    """File of folds like nnU-Net's splits_final.json, [{"train": [case, ...], "val": [case, ...]}, ...], to be used in
    place of the data set's own split; empty: the data set's own, in nnUNet_preprocessed, too."""
    split_shares: tuple[float, float, float] = (80.0, 10.0, 10.0)
    """Percent of the cases, by subject, for training, validation and test, without folds and where the data set has no
    split of its own; 0 for the test is allowed, and for the validation: the weights of the last epoch are then kept."""
    class_names: tuple[str, ...] = ()
    """Names of the classes, background first; empty: taken from the data set."""
    missing_masks: Literal["not_annotated", "absent"] = "not_annotated"
    """What a structure without a mask is, where other cases have one (TotalSegmentator's layout): not annotated there,
    so neither trained nor scored, or absent from the body. An empty mask always means absent."""
    label_remap: dict[Any, Any] | None = None
    """Class name or index for values of the label files that are not classes (or are to mean others), such as
    {7: liver, 255: background, 5: ignore}; `bodyseg check` suggests it."""
    subject_pattern: str = ""
    """Regular expression for whole names of cases whose first group is the subject, such as (.+)_t[0-9]+ for two visits
    of a patient, who is then never in two splits; empty: as the data set says, else each case is a subject."""
    follow_links: bool = False
    """Follow symbolic links that lead out of the data set's folder (a list file may name any file)."""
    skip_bad_cases: bool = False
    """Train without the cases that have errors instead of refusing; training_config.json names them."""
    mode: Literal["resize", "patch"] = "resize"
    """resize = every volume becomes target_size; patch = volumes are resampled to spacing_mm, the network is trained on
    patches of target_size and predicts whole scans through a window of that size."""
    target_size: tuple[int, int, int] = (160, 160, 256)
    """Size in voxels (left-right, back-front, foot-head) of the patch in patch mode, else that every volume is resized
    to."""
    spacing_mm: tuple[float, ...] = ()
    """Voxel size (left-right, back-front, foot-head) that volumes are resampled to in patch mode; `bodyseg plan` finds
    it."""
    patches_per_case: float = 1.0
    """Patches drawn for each training case in an epoch of the final patch size (patch mode); the epochs of
    data.patch_growth have as many batches."""
    foreground: float = 0.5
    """Share of the patches that are placed over a structure, rare ones as often as large ones (patch mode)."""
    patch_growth: tuple[list[int], ...] = ()
    """Smaller patches for the first epochs (patch mode): voxels i, j, k, batch size and epochs of each stage; the other
    epochs take target_size and batch_size."""
    keep_aspect: bool = False
    """Keep the body's proportions and pad, instead of stretching the volume to the target size."""
    intensity: Literal["auto", "ct", "mr", "zscore"] = "auto"
    """How intensities are scaled: ct = window in HU to −1…1, mr = percentiles to −1…1, zscore = mean 0, deviation 1."""
    window: tuple[float, float] | Literal["auto"] = "auto"
    """CT window in HU, lowest and highest value; auto = that of the labelled voxels of the training cases."""
    mean_std: tuple[float, float] | Literal["auto", "none"] = "auto"
    """Mean and deviation in HU that become 0 and 1 in CT channels, after clipping to the window; auto = those of the
    labelled voxels in patch mode, none in resize mode; none = the window becomes -1 to 1."""
    percentiles: tuple[float, float] = (0.5, 99.5)
    """MR percentiles that become −1 and 1."""
    fill_nan: float | list[float] | None = None
    """Number that NaN voxels of images become, such as those outside the field of view (−1024 in a CT), in training and
    prediction, or one for each channel, such as [-1024, 0] of CT and PET; null: such images are refused, as those with
    infinite voxels are."""
    batch_size: int = 2
    """Volumes, or patches in patch mode, in one training batch of each process."""
    num_workers: int = 4
    """Processes that prepare batches, for each process that trains; 0 = that process itself."""
    data_aug: bool = False
    """Vary the training volumes at random: rotation, scale, shift, contrast, noise, blur, low resolution."""
    flips: tuple[int, ...] = ()
    """Voxel axes that augmentation may mirror: 0 = left-right (sided classes are then swapped by name), 1 = back-front,
    2 = foot-head."""
    sided_pairs: list[list[str]] | None = None
    """Class names that a mirror from left to right exchanges, such as [[Parotid_L, Parotid_R]]; null: those whose names
    differ in the side alone."""
    augmentation: dict[str, Any] | None = None
    """Strengths of the augmentation by name, such as {rotation_deg: 25, noise: 0}; transforms.augment.Strengths
    explains them all."""
    augment_on_device: bool | None = None
    """Augment on the device that trains instead of in the workers; null: where that is a GPU, which needs milliseconds.
    Patches are always augmented in the workers."""
    cache_dir: str = "cache"
    """Folder of the preprocessed cases, shared by all runs."""
    cache_limit_gb: float = 0.0
    """Entries of other settings are removed to keep the cache folder below this size; 0 = no limit."""

    def __post_init__(self) -> None:
        if self.label_remap is not None:
            object.__setattr__(self, "label_remap", _checked_remap(self.label_remap))
        _check_pattern(self.subject_pattern)
        require(len(self.target_size) == 3, f"data.target_size: expected 3 numbers, found {len(self.target_size)}")
        require(
            min(self.target_size) >= LEAST_EDGE,
            f"data.target_size {list(self.target_size)}: every side must be at least {LEAST_EDGE}",
        )
        require(
            math.prod(self.target_size) <= MAX_VOXELS,
            f"data.target_size {list(self.target_size)}: expected at most {MAX_VOXELS} voxels",
        )
        self._check_patches()
        require(
            min(self.split_shares) >= 0 and self.split_shares[0] > 0 and abs(sum(self.split_shares) - 100) < 1e-6,
            f"data.split_shares {list(self.split_shares)}: expected a sum of 100, and more than 0 for the training",
        )
        _check_least("data", self, {"batch_size": 1, "num_workers": 0, "fold": 0})
        self._check_folds()
        self._check_data_sets()
        self._check_intensities()
        require(set(self.flips) <= {0, 1, 2}, f"data.flips {list(self.flips)}: axes are 0, 1 and 2")
        for name in ("flips", "augment_on_device", "augmentation"):
            require(
                not getattr(self, name) or self.data_aug,
                f"data.{name} is set but augmentation is off; add --data_aug or remove data.{name}",
            )
        require(
            self.sided_pairs is None or LEFT_RIGHT in self.flips,
            f"data.sided_pairs is set but data.flips lacks axis {LEFT_RIGHT} (left-right); add it or remove "
            "data.sided_pairs",
        )
        require(self.cache_dir != "", "data.cache_dir is empty; name a folder of its own, or leave it out")
        require(
            0 <= self.cache_limit_gb < math.inf,
            f"data.cache_limit_gb must be a number of 0 (no limit) or more, got {self.cache_limit_gb}",
        )

    def _check_folds(self) -> None:
        require(self.folds == 0 or self.folds >= 2, f"data.folds must be 2 or more (0 = one split), got {self.folds}")
        require(
            not self.folds or self.fold < self.folds,
            f"data.fold is {self.fold}, but data.folds {self.folds} makes folds 0 to {self.folds - 1}",
        )

    @property
    def dataset_roots(self) -> tuple[str, ...]:
        """The data sets, also where it is one."""
        return (self.dataset_root,) if isinstance(self.dataset_root, str) else self.dataset_root

    def with_scaling(self, found: Mapping[str, Any]) -> DataConfig:
        """Put the window, mean and deviation of CT that were found before in the place of "auto".

        found: data.window and data.mean_std, where they are known, as training_config.json has them.
        """
        values: dict[str, Any] = {}
        for name in ("window", "mean_std"):
            if getattr(self, name) == "auto" and name in found:
                values[name] = tuple(map(float, found[name])) if isinstance(found[name], list) else found[name]
        return replace(self, **values)

    def _check_data_sets(self) -> None:
        """Refuse what belongs to one data set where there are several."""
        if isinstance(self.layout, tuple):
            require(
                len(self.layout) == len(self.dataset_roots),
                f"data.layout: expected one layout, or one for each of {len(self.dataset_roots)} data sets, got "
                f"{len(self.layout)}",
            )
        for name in ("class_names", "label_remap", "split_file"):
            require(
                len(self.dataset_roots) == 1 or not getattr(self, name),
                f"data.{name} is for one data set, data.dataset_root names {len(self.dataset_roots)}; remove it: each "
                "data set brings its own names, values and split (labels.json beside it, or a list of its cases)",
            )

    def _check_intensities(self) -> None:
        if not isinstance(self.mean_std, str):
            mean, deviation = self.mean_std
            require(
                not isinstance(mean, str)
                and not isinstance(deviation, str)
                and math.isfinite(mean)
                and 0 < deviation < math.inf,
                f"data.mean_std {list(self.mean_std)}: expected a mean and a deviation above 0, in HU",
            )
        for name in ("window", "percentiles"):
            if getattr(self, name) == "auto":
                continue
            low, high = getattr(self, name)
            require(
                not isinstance(low, str) and not isinstance(high, str),
                f"data.{name}: expected two numbers, found {low} {high}",
            )
            require(
                math.isfinite(low) and low < high < math.inf,
                f"data.{name} [{low}, {high}]: the first must be below the second",
            )
        require(
            self.percentiles[0] >= 0 and self.percentiles[1] <= 100,
            f"data.percentiles {list(self.percentiles)}: both must lie within 0 to 100",
        )
        fills = self.fill_nan if isinstance(self.fill_nan, list) else [self.fill_nan or 0.0]
        require(
            bool(fills) and all(map(math.isfinite, fills)),
            f"data.fill_nan: expected a number, or one for each channel, got {self.fill_nan}",
        )

    def _check_patches(self) -> None:
        if self.mode == "resize":
            for name in ("spacing_mm", "patches_per_case", "foreground", "patch_growth"):
                require(
                    getattr(self, name) == getattr(DataConfig, name),
                    f"data.{name} is for patches; set data.mode to patch, or remove it",
                )
            return
        require(
            len(self.spacing_mm) == 3 and all(0 < mm < math.inf for mm in self.spacing_mm),
            f"data.spacing_mm {list(self.spacing_mm)}: expected three numbers of mm above 0; bodyseg plan finds them",
        )
        require(not self.keep_aspect, "data.keep_aspect is for resizing; remove it or set data.mode to resize")
        require(not self.augment_on_device, "data.augment_on_device is for data.mode resize; remove it")
        require(
            0 < self.patches_per_case <= 1e6,
            f"data.patches_per_case must lie above 0 and not above 1e6, got {self.patches_per_case}",
        )
        require(0 <= self.foreground <= 1, f"data.foreground must lie within 0 to 1, got {self.foreground}")
        for stage in self.patch_growth:
            require(
                len(stage) == 5
                and all(isinstance(n, int) and n >= 1 for n in stage)
                and min(stage[:3]) >= LEAST_GROWING_EDGE,
                f"data.patch_growth {stage}: expected five numbers, voxels i, j, k ({LEAST_GROWING_EDGE} or more), "
                "batch size and epochs",
            )


@dataclass(frozen=True)
class ModelConfig:
    """Which network is trained."""

    n_classes: int | None = None
    """Number of classes with the background; null: as many as the data set names."""
    base_channels: int = 32
    """Channels of BodyNet at full resolution; its size grows with the square."""
    use_light_model: bool = False
    """Train the light form of BodyNet: less memory, less time, somewhat coarser."""
    network: dict[str, Any] | None = None
    """Another network: its class path under _target_ and its arguments; null: BodyNet."""
    checkpointing: bool = False
    """Save memory by computing activations twice (for small GPUs; BodyNet only)."""

    def __post_init__(self) -> None:
        if self.network is not None:
            require("_target_" in self.network, "model.network has no _target_; name the network's class there")
        _check_least("model", self, {"n_classes": 2, "base_channels": self.least_channels})
        for name in ("use_light_model", "checkpointing"):
            require(
                not getattr(self, name) or self.is_body_net,
                f"model.{name} is BodyNet's; remove it or model.network",
            )

    @property
    def network_name(self) -> str:
        """Name of the network's class."""
        return "BodyNet" if self.network is None else str(self.network["_target_"]).rpartition(".")[2]

    @property
    def is_body_net(self) -> bool:
        """Whether the network is ours."""
        return self.network_name == "BodyNet"

    @property
    def least_channels(self) -> int:
        """Of base_channels: the light form of BodyNet halves it."""
        return 2 if self.is_body_net else 1


@dataclass(frozen=True)
class TrainingConfig:
    """How the network is trained."""

    lr: float = 1e-4
    """Learning rate after warm-up."""
    optimizer: Literal["adamw", "muon", "sgd"] = "adamw"
    """adamw; muon, whose steps of convolutions and linear layers are made orthogonal and which learns more in the same
    time (lr 0.016); or sgd with Nesterov's momentum of 0.99 as in nnU-Net, which takes lr 0.01, weight_decay 3e-5 and
    schedule poly."""
    weight_decay: float = 0.0
    """Weight decay: decoupled from the gradient with adamw and muon, added to it with sgd (L2)."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, such as 0.999, which is then validated and kept in
    best_model.ckpt; after n steps the decay is (1 + n) / (10 + n) at most; null = the weights themselves."""
    max_epochs: int = 100
    """Epochs to train."""
    warmup_epochs: int = 5
    """Epochs in which the learning rate rises linearly to lr."""
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    """What the learning rate does after warm-up: cosine = half a cosine down to 0, poly = (1 - t)^0.9 as in nnU-Net, or
    constant."""
    n_gpus: int | None = None
    """GPUs to train on, on each machine, one process a GPU; 0 = CPU; null: one where there is one.
    CUDA_VISIBLE_DEVICES=1 in front of the command chooses the second."""
    n_processes: int | None = None
    """Processes that train together on the CPUs of each machine; null: one, or as many as torchrun or SLURM started."""
    precision: Precision = "16"
    """Numbers the network computes in: 32, 16 (float16 on a GPU) or bf16; a CPU takes bfloat16 for both where it has
    it, else float32."""
    seed: int = 42
    """Decides everything random: split, weights, order, augmentation."""
    gradient_clip: float = 12.0
    """Largest norm of the gradient; 0 = no clipping."""
    accumulate: int = 1
    """Batches in one optimiser step, which takes the mean over all their samples."""
    deep_supervision: bool = False
    """Train heads on the coarser levels of BodyNet's decoder, too (weights 1/2, 1/4, …); other networks have their own
    argument for it."""
    on_nan_loss: Literal["stop", "skip"] = "stop"
    """When a loss or gradient is NaN or infinite: stop the training, or skip (and count) that step."""
    early_stopping_patience: int = 0
    """Stop when val_mIoU has not risen for so many validated epochs, of the final patch size; 0 = never."""
    compile: bool = False
    """Compile the network with torch.compile (needs a C++ compiler on a CPU; pays on long GPU trainings)."""
    validate_every: int = 1
    """Validate after every so many epochs, and after the last; in between, the log holds null. While patches are
    smaller than the final ones (data.patch_growth), once a size at most, after its last epoch."""
    overlay_every: int = 10
    """Every so many epochs, at the next validation, a slice with its segmentation goes to TensorBoard; 0 = never."""
    start_from: str | None = None
    """Run folder, best_model.ckpt or file with a network's state_dict to begin with. What fits is taken over: the head
    by class name, the first convolution by channel name. Of a run the network and the preprocessing are taken over,
    too, where no flag and no config file says otherwise. null = all weights are newly initialised."""
    start_classes: dict[Any, Any] | None = None
    """Classes that have other names now, such as {hippocampus: anterior}: name in the run that is started from, and
    name in the data set."""
    freeze_epochs: int = 0
    """Epochs in which the encoder that was taken over is not trained, only the rest of the network."""
    taken_lr_factor: float = 1.0
    """Factor on the learning rate of weights that were taken over whole; all others learn at the full rate."""

    def __post_init__(self) -> None:
        self._check_start()
        require(0 < self.lr < math.inf, f"training.lr must be above 0, got {self.lr}")
        require(
            0 <= self.weight_decay < math.inf,
            f"training.weight_decay must be a number of 0 or more, got {self.weight_decay}",
        )
        require(self.ema is None or 0 < self.ema < 1, f"training.ema must lie between 0 and 1, got {self.ema}")
        counts = {"max_epochs": 1, "warmup_epochs": 0, "n_gpus": 0, "n_processes": 1, "accumulate": 1}
        counts |= {"early_stopping_patience": 0, "validate_every": 1, "overlay_every": 0}
        _check_least("training", self, counts)
        require(
            not self.n_gpus or self.n_processes in (None, self.n_gpus),
            f"training.n_processes is {self.n_processes}, but {self.n_gpus} GPUs make {self.n_gpus} processes; "
            "leave it out, or train on CPUs with --n_gpus 0",
        )
        require(0 <= self.seed < 2**32, f"training.seed must lie within 0 to 4294967295, got {self.seed}")
        require(
            0 <= self.gradient_clip < math.inf,
            f"training.gradient_clip must be a number of 0 (no clipping) or more, got {self.gradient_clip}",
        )

    def _check_start(self) -> None:
        require(self.start_from != "", "training.start_from is empty; name a run folder or a file, or leave it out")
        _check_least("training", self, {"freeze_epochs": 0})
        require(
            0 < self.taken_lr_factor < math.inf,
            f"training.taken_lr_factor must be above 0, got {self.taken_lr_factor}; training.freeze_epochs freezes",
        )
        for name in ("start_classes", "freeze_epochs", "taken_lr_factor"):
            require(
                self.start_from is not None or getattr(self, name) == getattr(TrainingConfig, name),
                f"training.{name} is about what a training takes over; add --training.start_from RUN, or remove it",
            )
        for old, new in (self.start_classes or {}).items():
            require(
                isinstance(old, str) and isinstance(new, str),
                "training.start_classes: expected a class name for a class name, such as {hippocampus: anterior}, "
                f"found {old!r}: {new!r}",
            )


@dataclass(frozen=True)
class LossConfig:
    """How the classes are weighed."""

    use_class_weights: bool = False
    """Weigh classes by median frequency balancing (Eigen & Fergus 2015)."""
    weight_alpha: float | None = 0.5
    """Exponent of the class weights: 0 = all alike, 1 = full balance; null when class weights are off."""

    def __post_init__(self) -> None:
        if not self.use_class_weights:
            default = type(self).weight_alpha
            require(
                self.weight_alpha in (None, default),
                f"loss.weight_alpha is {self.weight_alpha} but class weights are off; add --use_class_weights or "
                "remove loss.weight_alpha",
            )
            object.__setattr__(self, "weight_alpha", None)
            return
        alpha = self.weight_alpha
        require(
            alpha is not None and 0 <= alpha < math.inf,
            f"loss.weight_alpha must be 0 or more with class weights on, got {alpha}; 0.5 is usual",
        )


@dataclass(frozen=True)
class Config:
    """Everything a person can set for one training."""

    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        require(
            bool(self.data.dataset_root) and "" not in self.data.dataset_roots,
            "data.dataset_root is missing; name the folder of your scans with --dataset_root DIR",
        )
        require(
            not self.training.deep_supervision or self.model.is_body_net,
            f"training.deep_supervision is BodyNet's; switch it off, {self.model.network_name} has its own argument "
            "for it in model.network, if at all",
        )


GROUPS: dict[str, type] = {f.name: typing.get_type_hints(Config)[f.name] for f in fields(Config)}

FOUND_OUT: dict[str, frozenset[str]] = {
    "experiment": frozenset({"start_time", "command"}),
    "data": frozenset(
        {
            "check",
            "intensity_found",
            "intensity_scaling",
            "split",
            "cross_validation",
            "channel_names",
            "n_cases",
            "skipped_cases",
            "annotated",
            "augmented_on_device",
            "data_sets",
        }
    ),
    "model": frozenset({"total_parameters", "network_settings", "in_channels", "class_names"}),
    "training": frozenset({"effective_precision", "n_nodes", "steps_per_epoch", "started_from", "resumed"}),
    "loss": frozenset({"class_weights_stats", "class_weights", "classes_that_never_occur"}),
}
"""Keys of training_config.json that a run finds out by itself; they are no settings."""


def takes_texts(hint: Any) -> bool:
    """Whether a setting is a text or several."""
    return set(typing.get_args(hint)) == {str, tuple[str, ...]}


def tuple_and_words(hint: Any) -> tuple[Any, tuple[str, ...]] | None:
    """The tuple in a setting's type, and the words that may stand for it ("auto"); None for other types."""
    if typing.get_origin(hint) is tuple:
        return hint, ()
    parts = typing.get_args(hint)
    words = tuple(word for part in parts if typing.get_origin(part) is Literal for word in typing.get_args(part))
    tuples = [part for part in parts if typing.get_origin(part) is tuple]
    return (tuples[0], words) if tuples and words else None
