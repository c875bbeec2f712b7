"""The LightningModule: network, loss, metric and optimiser. Writes no file.

Every random number of an epoch follows from (seed, epoch, process), and the learning rate from the epoch alone, so
that a resumed training needs neither random states nor a scheduler's state.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from networks.deep_supervision import CoarseHeads, supervised_levels
from networks.sliding_window import SlidingWindow
from pipeline.compute.memory import keep_freed_memory
from pipeline.compute.ranks import gather_texts, gathered
from pipeline.losses.deep_supervision import deep_supervision_loss
from pipeline.losses.dice_ce import SlabDiceCELoss, VolumeDiceCE
from pipeline.losses.label_counts import refuse_unknown_labels
from pipeline.metrics.overlap import joint_histogram
from pipeline.metrics.slab_argmax import segment_in_slabs
from pipeline.metrics.validation_iou import ValidationIoU
from pipeline.training.ahead_loader import AheadLoader
from pipeline.training.muon import hidden_matrices
from pipeline.training.optimisation import NOTHING_TAKEN, Optimisation
from pipeline.training.schedule import Schedule
from pipeline.training.weight_average import WeightAverage
from pipeline.training.weighted_mean import WeightedMean
from pipeline.visualisation.validation_picture import ValidationSample
from transforms.slabs import segmentation_dtype

log = logging.getLogger(__name__)

VALIDATION_SLICES = 32
"""Slices of a validation case whose features exist at once, where it goes through a window."""

SCALED_STEPS_TO_GIVE_UP = 20
"""Steps in a row whose scaled gradient was NaN or infinite. The scale begins at 2**16 and halves after each, so some
are normal; once it has fallen below 1, the gradient itself is NaN or infinite."""


class TrainingError(RuntimeError):
    """Training cannot go on; one line that says where and why."""

    is_input_error = True


class SegmentationModule(pl.LightningModule):
    """Train a network that is `features(x)` and `head` (see networks.registry) on whole volumes.

    Args:
        network: has `.features` and `.head`; with head None the features are the logits.
        n_classes: classes, background included.
        schedule: learning rate of every epoch.
        criterion: the loss; None: all classes weigh alike and all voxels count. The metric ignores the same voxels.
        coarse_heads: heads of the network's coarser levels, which are then supervised, too; trained, but no part of the
            network.
        optimisation: how gradients change the weights.
        seed: decides the random numbers of every epoch.
        compile_features: run the network through torch.compile.
        window: voxels (I, J, K) of the sliding window that validation cases go through; None: whole at once.
        skip_undefined: leave out and count the steps whose loss or gradient is NaN or infinite, instead of stopping.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        n_classes: int,
        schedule: Schedule,
        criterion: SlabDiceCELoss | None = None,
        coarse_heads: CoarseHeads | None = None,
        optimisation: Optimisation = Optimisation(),  # noqa: B008  immutable
        seed: int = 0,
        compile_features: bool = False,
        skip_undefined: bool = False,
        window: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.n_classes = n_classes
        self.schedule = schedule
        self.optimisation = optimisation
        self.average = None if optimisation.ema is None else WeightAverage(optimisation.ema)
        """The moving average of the network's weights; None: there is none."""
        self._averaged = ExitStack()
        self.taken = NOTHING_TAKEN
        """What was taken over from another training; set before the fit."""
        self.seed = seed
        self.skip_undefined = skip_undefined
        self.window = window
        self.criterion = criterion or SlabDiceCELoss()
        self.ignore_index = self.criterion.ignore_index
        self.coarse_heads = coarse_heads
        features = cast(Callable[[Tensor], Tensor], network.features)
        levels = partial(supervised_levels, network, coarse_heads)
        self._features = torch.compile(features) if compile_features else features
        self._levels = torch.compile(levels) if compile_features else levels
        self.skipped_steps = 0
        """Steps of the whole run that were left out."""
        self._skipped_in_a_row = 0
        self._samples_of_step: list[int] = []
        """Samples, over all processes, of each batch whose gradients the next step takes together."""
        self._cases_of_step: list[str] = []
        """This process's cases since the last step."""
        self._unchecked: tuple[Tensor, Tensor] | None = None
        """Loss and label of the step, where they are looked at together with the gradient."""
        self.train_loss = WeightedMean()
        self.train_accuracy = WeightedMean()
        self.val_loss = WeightedMean()
        self.val_iou = ValidationIoU()
        self.val_iou_per_class = np.full(n_classes - 1, np.nan)
        """Per foreground class after the last validation; NaN where no case holds the class."""
        self.validated_epoch: int | None = None
        """The epoch of the last validation."""
        self.sample: ValidationSample | None = None
        """The first case of the last validation."""

    @property
    def head(self) -> nn.Module | None:
        """The network's last 1×1×1 convolution, or None where its features are the logits."""
        return cast(nn.Module | None, self.network.head)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser, in one fused kernel where gradients are not scaled."""
        # A fused optimiser unscales float16 gradients itself, too late for clipping.
        return self.optimisation.build(
            self.parameters(),
            lr=self.schedule.lr,
            fused=not self._is_scaled,
            taken=self.taken,
            matrices=hidden_matrices(self.network, self.head),
        )

    @property
    def _checks_at_once(self) -> bool:
        """Whether a batch's loss must be known before its backward pass: the batch may be left out, or there are more
        in the step."""
        return self.skip_undefined or self.trainer.accumulate_grad_batches > 1

    @property
    def _is_frozen(self) -> bool:
        return self.current_epoch < self.taken.freeze_epochs

    @property
    def _is_scaled(self) -> bool:
        return self.trainer.precision == "16-mixed"

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Any = None,
    ) -> None:
        """Take the mean over the samples of all accumulated batches, and clip it by norm.

        Lightning's own clipping refuses fused optimisers in bfloat16 too, where nothing is scaled. A gradient that is
        NaN or infinite would turn every weight into NaN one step before the loss does.
        """
        if self._is_frozen:
            # Several processes go on computing these gradients, see on_train_epoch_start
            for parameter in self.taken.frozen:
                parameter.grad = None
        self._average_batches()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val or math.inf)
        loss = norm if self._unchecked is None else self._unchecked[0]
        if not torch.isfinite(norm) & torch.isfinite(loss):  # the only place of a step that waits for a GPU
            self._refuse_undefined_loss()
            self._skip("gradient", norm, self._cases_of_step, was_scaled=self._is_scaled)
            optimizer.zero_grad(set_to_none=True)  # a scaler has seen it, leaves the step out too and scales less
        elif self.skip_undefined and not norm:  # a step that is left out; momentum must not move the weights either
            optimizer.zero_grad(set_to_none=True)
        else:
            self._skipped_in_a_row = 0

    def _refuse_undefined_loss(self) -> None:
        """Raise TrainingError where the step's unchecked loss is NaN or infinite, ValueError where its label is why."""
        if self._unchecked is None:
            return
        loss, label = self._unchecked
        if not torch.isfinite(loss):
            refuse_unknown_labels(label, self.n_classes, self.ignore_index)
            self._skip("loss", loss, self._cases_of_step)

    def _average_batches(self) -> None:
        """Weigh the accumulated batches by their samples.

        Lightning divides every loss by the number of batches of a full step, also in the last step of an epoch,
        which may take fewer, and where batches were left out.
        """
        if not self._samples_of_step:
            return
        factor = self.trainer.accumulate_grad_batches * self._samples_of_step[0] / sum(self._samples_of_step)
        if factor != 1:
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)

    def on_fit_start(self) -> None:
        """On a CPU, keep the memory of one step for the next; on a GPU, do not wait for what labels hold."""
        if self.device.type == "cpu":
            keep_freed_memory()
        self.criterion.checks_labels = self._checks_at_once

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Step, then free the gradients: left until the next backward pass, they would lie between its activations."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.average is not None and not self._skipped_in_a_row:  # else the step was left out
            self.average.update(self.network)
        optimizer.zero_grad()
        self._samples_of_step.clear()
        self._cases_of_step.clear()
        self._unchecked = None

    def on_train_epoch_start(self) -> None:
        """Set the epoch's learning rate, what of the network is trained, and random numbers."""
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.schedule.learning_rate(self.current_epoch) * group.get("lr_factor", 1.0)
        if self.trainer.world_size == 1:
            # DistributedDataParallel would wait for gradients of parameters that required some when it was made
            for parameter in self.taken.frozen:
                parameter.requires_grad_(not self._is_frozen)
        for norm in self.taken.frozen_norms:
            norm.train(not self._is_frozen)
        words = np.random.SeedSequence([self.seed, self.current_epoch, self.global_rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0] >> np.uint64(1)))

    def on_after_backward(self) -> None:
        """Prepare the next batch on the GPU while it computes this one's gradients."""
        if isinstance(loader := self.trainer.train_dataloader, AheadLoader):
            loader.fetch()

    def forward(self, image: Tensor) -> Tensor:
        """Full-size logits (B, n_classes, I, J, K), for interactive use; training never computes them."""
        return self.network(image)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of one batch; 0 for a batch that is left out (see skip_undefined)."""
        image = _plain(batch["image"])
        label = _plain(batch["label"])
        cases = [str(case) for case in batch["case"]]
        self._cases_of_step += cases
        counted: list[bool] = batch.get("counted", [True] * len(image))
        criterion = partial(
            self.criterion,
            across_processes=True,
            counted=None if all(counted) else counted,
            annotated=batch.get("annotated"),
        )
        result = deep_supervision_loss(criterion, self._levels(image), label)
        loss = result.loss.detach()
        if not self._checks_at_once:
            self._unchecked = loss, label
        # The same in all processes: none goes on, or leaves a batch out, without the others.
        elif not torch.isfinite(loss):
            self._skip("loss", loss, cases)
            return self._zero_loss()
        self.train_loss.update(loss, weight=sum(counted))
        self.train_accuracy.update(result.n_correct / result.n_voxels.clamp(min=1), weight=result.n_voxels)
        self.log("loss", loss, logger=False, batch_size=len(image))
        self.log("train_loss", self.train_loss, on_step=False, on_epoch=True, logger=False)
        self.log("train_accuracy", self.train_accuracy, on_step=False, on_epoch=True, logger=False)
        return self._weighed(result.loss, sum(counted))

    def _weighed(self, loss: Tensor, n_samples: int) -> Tensor:
        """Scale a batch's mean loss by its samples against the first of its step, see `_average_batches`."""
        if self.trainer.accumulate_grad_batches == 1:
            return loss
        if self.trainer.world_size > 1:
            n_samples = int(gathered(torch.tensor([n_samples], device=loss.device)).sum())
        self._samples_of_step.append(n_samples)
        return loss if n_samples == self._samples_of_step[0] else loss * (n_samples / self._samples_of_step[0])

    def _zero_loss(self) -> Tensor:
        """A loss of 0 from every parameter.

        With None instead, Lightning would let the processes wait for each other, and would drop what the batches
        before it have accumulated where gradients are scaled (2.6, MixedPrecision.optimizer_step).
        """
        return cast(Tensor, sum((0 * p).sum() for p in self.parameters()))

    def _skip(self, what: str, value: Tensor, cases: list[str], *, was_scaled: bool = False) -> None:
        """Count a step whose loss or gradient is NaN or infinite; raise TrainingError unless it may be left out.

        was_scaled: perhaps only the scale was too large, which is normal; too many in a row are an error all the same.
        """
        step = self.trainer.fit_loop.epoch_loop.batch_idx
        named = ", ".join(gather_texts(", ".join(cases)))
        where = f"the {what} is {value.item()} in epoch {self.current_epoch}, step {step} (cases {named})"
        advice = "try a smaller --lr, --precision 32, or look at these cases"
        if not (self.skip_undefined or was_scaled):
            raise TrainingError(f"{where}; {advice} (--training.on_nan_loss skip leaves such steps out)")
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        level = logging.INFO if was_scaled else logging.WARNING
        log.log(level, "%s; step left out, %d so far", where, self.skipped_steps)
        most: int | float = self.trainer.num_training_batches
        if what == "gradient":
            most = math.ceil(most / self.trainer.accumulate_grad_batches)
        if self._skipped_in_a_row >= (SCALED_STEPS_TO_GIVE_UP if was_scaled else most):
            raise TrainingError(f"{where}, like all of the {self._skipped_in_a_row} steps before it; {advice}")

    def kept_weights(self) -> AbstractContextManager[None]:
        """Give the network the weights that are validated and kept, for a while: the average where there is one."""
        return nullcontext() if self.average is None else self.average.in_place_of_weights(self.network)

    def on_validation_start(self) -> None:
        """Validate the weights that are kept; DistributedDataParallel gives all processes the first one's buffers."""
        self._averaged.enter_context(self.kept_weights())

    def on_validation_end(self) -> None:
        """Go on with the trained weights."""
        self._averaged.close()

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        if not self.trainer.sanity_checking:
            self.validated_epoch = self.current_epoch
        self.val_iou.reset()
        self.sample = None

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Compute loss and Dice of every case by itself: the same at any batch size and number of processes."""
        if batch["case"]:
            self._validate(batch, keep_sample=batch_idx == 0)
        else:
            # No case is left for this process; it adds nothing to the means, but as many rows as the others.
            self.val_loss.update(0.0, weight=0.0)
            self.val_iou.update(torch.zeros(self.n_classes, self.n_classes, dtype=torch.int64, device=self.device))
        self.log("val_loss", self.val_loss, on_step=False, on_epoch=True, logger=False)

    def _validate(self, batch: dict[str, Any], *, keep_sample: bool) -> None:
        image = _plain(batch["image"])
        label = _plain(batch["label"])
        for number, case in enumerate(batch["case"]):
            size = label.shape[2:]
            window = SlidingWindow(self._features, image[number], self.window or size, axis=2)
            loss = VolumeDiceCE(
                self.head,
                class_weights=self.criterion.class_weights,
                ignore_index=self.ignore_index,
                annotated=batch["annotated"][number] if "annotated" in batch else None,
            )
            segmentation = torch.empty(size, dtype=segmentation_dtype(self.n_classes), device=self.device)
            n_slices = size[2] if window.n_windows == 1 else VALIDATION_SLICES
            for start in range(0, size[2], n_slices):
                slices = slice(start, min(start + n_slices, size[2]))
                features = window.slices(slices.start, slices.stop)
                loss.add(features, label[number, 0, ..., slices])
                segmentation[..., slices] = segment_in_slabs(features[None], self.head)[0]
            self._add_validation_loss(loss.loss(), str(case))
            self.val_iou.update(joint_histogram(label[number, 0], segmentation, self.n_classes, self.ignore_index))
            if keep_sample and number == 0:
                affine = np.asarray(getattr(batch["image"], "affine", np.eye(4)), np.float64).reshape(-1, 4, 4)[0]
                self.sample = ValidationSample(str(case), image[0].cpu(), label[0, 0].cpu(), segmentation.cpu(), affine)

    def _add_validation_loss(self, loss: Tensor, case: str) -> None:
        self.val_loss.update(loss)
        if not torch.isfinite(loss):
            log.warning(
                "case %s: the validation loss is %s in epoch %d; val_loss of this epoch is undefined",
                case,
                loss.item(),
                self.current_epoch,
            )

    def on_validation_epoch_end(self) -> None:
        """Compute val_mIoU: Dice to IoU per case and class, mean over cases, then over classes."""
        mean, per_class = self.val_iou.compute()
        self.val_iou_per_class = per_class.reshape(-1).cpu().numpy()  # torchmetrics makes a number of a single class
        self.log("val_mIoU", float(mean), logger=False)


def metrics_of_epoch(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, float]:
    """The metrics of the epoch that has just ended; those of the validation only where it was validated.

    Lightning still has the values of an earlier validation.
    """
    validated = module.validated_epoch == trainer.current_epoch
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {name: value for name, value in found.items() if validated or not name.startswith("val_")}


def _plain(tensor: Tensor) -> Tensor:
    """Return a MetaTensor's bare tensor: metadata cost time in every operation of the network."""
    return tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
