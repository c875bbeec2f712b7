"""The LightningModule: network + loss + metric + optimiser and schedule. Writes no file.

Every random number of an epoch follows from (seed, epoch, process), and the learning rate from the epoch alone, so
that a resumed training needs neither random states nor a scheduler's state.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from pipeline.compute.memory import keep_freed_memory
from pipeline.compute.ranks import all_texts
from pipeline.losses.dice_ce import DiceCE, SlabDiceCELoss
from pipeline.metrics.overlap import joint_histogram
from pipeline.metrics.slab_argmax import segment_in_slabs
from pipeline.metrics.validation_iou import ValidationIoU
from pipeline.training.schedule import learning_rate_at

log = logging.getLogger(__name__)

SCALED_STEPS_TO_GIVE_UP = 20
"""Steps in a row whose scaled gradient was no number. The scale begins at 2**16 and halves after each: some are normal,
but once it has fallen below 1, it is the gradient itself that is none."""


class TrainingError(RuntimeError):
    """Training cannot go on; one line that says where and why."""

    is_input_error = True


class SegmentationModule(pl.LightningModule):
    """Trains a network that is `features(x)` and `head` (see networks.registry) on whole volumes.

    Args:
        network: has `.features` and `.head`; with head None the features are the logits.
        n_classes: classes with the background.
        class_weights: (n_classes,) weights of the loss, or None.
        lr, weight_decay, warmup_epochs, max_epochs, schedule: see pipeline.config.TrainingConfig.
        seed: decides the random numbers of every epoch.
        ignore_index: label value of voxels that count nowhere.
        compile_features: run the network through torch.compile.
        skip_undefined: leave out and count the steps whose loss or gradient is no number, instead of stopping there.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        n_classes: int,
        class_weights: Tensor | None,
        lr: float,
        weight_decay: float,
        warmup_epochs: int,
        max_epochs: int,
        schedule: str,
        seed: int,
        ignore_index: int | None = None,
        compile_features: bool = False,
        skip_undefined: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.n_classes = n_classes
        self.criterion = SlabDiceCELoss(class_weights=class_weights, ignore_index=ignore_index)
        self.lr, self.weight_decay = lr, weight_decay
        self.warmup_epochs, self.max_epochs, self.schedule = warmup_epochs, max_epochs, schedule
        self.seed, self.ignore_index = seed, ignore_index
        self.skip_undefined = skip_undefined
        self.skipped_steps = 0
        """Steps of the whole run whose loss or gradient was no number."""
        self._skipped_in_a_row = 0
        self._cases: list[str] = []
        features = cast(Callable[[Tensor], Tensor], network.features)
        self._features = torch.compile(features) if compile_features else features
        # float64: an epoch adds up millions of voxels.
        self.train_loss, self.train_accuracy, self.val_loss = (MeanMetric().set_dtype(torch.float64) for _ in range(3))
        self.val_iou = ValidationIoU()
        self.val_iou_per_class = np.full(n_classes - 1, np.nan)
        """Per foreground class after the last validation; NaN where no case holds the class."""
        self.sample: tuple[Tensor, Tensor, Tensor] | None = None
        """Image (C, I, J, K), label and segmentation (I, J, K) of the first validation case, on the CPU."""

    @property
    def head(self) -> nn.Module | None:
        """The network's last 1×1×1 convolution, or None where its features are the logits."""
        return cast(nn.Module | None, self.network.head)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW (Loshchilov & Hutter 2019), in one fused kernel where gradients are not scaled."""
        # A fused optimiser unscales float16 gradients itself, too late for clipping.
        fused = self.trainer.precision != "16-mixed"
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=fused)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Any = None,
    ) -> None:
        """Clip by norm. Lightning's own refuses fused optimisers in bfloat16 too, where nothing is scaled.

        A gradient that is no number would make every weight none, one step before a loss shows it.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val or math.inf)
        if not torch.isfinite(norm):
            self._pass_over("gradient", norm, was_scaled=self.trainer.precision == "16-mixed")
            optimizer.zero_grad(set_to_none=True)  # a scaler has seen it, leaves the step out too and scales less
        elif norm:
            self._skipped_in_a_row = 0
        elif self.skip_undefined:  # a step left out; momentum shall not move the weights either
            optimizer.zero_grad(set_to_none=True)

    def learning_rate(self, epoch: int) -> float:
        """See `learning_rate_at`."""
        return learning_rate_at(
            epoch,
            lr=self.lr,
            warmup_epochs=self.warmup_epochs,
            max_epochs=self.max_epochs,
            schedule=self.schedule,
        )

    def on_fit_start(self) -> None:
        """On a CPU, keep the memory of one step for the next."""
        if self.device.type == "cpu":
            keep_freed_memory()

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Step, then free the gradients: left until the next backward pass, they would lie between its activations."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()

    def on_train_epoch_start(self) -> None:
        """Set the epoch's learning rate and random numbers."""
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.learning_rate(self.current_epoch)
        words = np.random.SeedSequence([self.seed, self.current_epoch, self.global_rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0] >> np.uint64(1)))

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, n_classes, I, J, K): for a person who wants them; training never makes them."""
        return self.network(image)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        """Loss of one batch; accuracy comes out of the same pass. None: the step is left out (see skip_undefined)."""
        image, label = _plain(batch["image"]), _plain(batch["label"])
        self._cases = [str(case) for case in batch["case"]]
        counted = batch["counted"].tolist() if "counted" in batch else [True] * len(image)
        result: DiceCE = self.criterion(
            self._features(image), self.head, label, across_processes=True, counted=None if all(counted) else counted
        )
        # The same in all processes: none goes on, or leaves a step out, without the others.
        loss = result.loss.detach()
        if not torch.isfinite(loss):
            self._pass_over("loss", loss)
            return None if self.trainer.world_size == 1 else self._nothing_to_learn()
        self.train_loss.update(loss, weight=sum(counted))
        self.train_accuracy.update(result.n_correct / result.n_voxels.clamp(min=1), weight=result.n_voxels)
        self.log("loss", loss, prog_bar=True, logger=False, batch_size=len(image))
        self.log("train_loss", self.train_loss, on_step=False, on_epoch=True, logger=False)
        self.log("train_accuracy", self.train_accuracy, on_step=False, on_epoch=True, logger=False)
        return result.loss

    def _nothing_to_learn(self) -> Tensor:
        """A loss of 0 from every parameter: Lightning lets no process leave its backward pass out."""
        return cast(Tensor, sum((0 * p).sum() for p in self.parameters()))

    def _pass_over(self, what: str, value: Tensor, *, was_scaled: bool = False) -> None:
        """Count a step that cannot be trained with; raise TrainingError unless it may be left out.

        was_scaled: the scale may have been too large, which is normal; only too many in a row are an error.
        """
        step = self.trainer.fit_loop.epoch_loop.batch_idx
        cases = ", ".join(all_texts(", ".join(self._cases)))
        where = f"the {what} is {value.item()} in epoch {self.current_epoch}, step {step} (cases {cases})"
        advice = "try a smaller --lr, --precision 32, or look at these cases"
        if not (self.skip_undefined or was_scaled):
            raise TrainingError(f"{where}; {advice} (--training.on_nan_loss skip leaves such steps out)")
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        log.log(
            logging.INFO if was_scaled else logging.WARNING, "%s; step left out, %d so far", where, self.skipped_steps
        )
        if self._skipped_in_a_row >= (SCALED_STEPS_TO_GIVE_UP if was_scaled else self.trainer.num_training_batches):
            raise TrainingError(f"{where}, like all of the {self._skipped_in_a_row} steps before it; {advice}")

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self.val_iou.reset()
        self.sample = None

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Loss and joint histogram of every case on its own: the same at any batch size and number of processes."""
        if batch["case"]:
            self._validate(batch, keep_sample=batch_idx == 0)
        else:
            # This process has no case left; it adds nothing to the means, but as many rows as the others gather.
            self.val_loss.update(0.0, weight=0.0)
            self.val_iou.update(torch.zeros(self.n_classes, self.n_classes, dtype=torch.int64, device=self.device))
        self.log("val_loss", self.val_loss, on_step=False, on_epoch=True, logger=False)

    def _validate(self, batch: dict[str, Any], *, keep_sample: bool) -> None:
        image, label = _plain(batch["image"]), _plain(batch["label"])
        features = self._features(image)
        segmentation = segment_in_slabs(features, self.head)
        for case in range(len(image)):
            one = slice(case, case + 1)
            self.val_loss.update(self._defined(self.criterion(features[one], self.head, label[one]).loss, batch, case))
            histogram = joint_histogram(label[case, 0], segmentation[case], self.n_classes, self.ignore_index)
            self.val_iou.update(histogram)
        if keep_sample:
            self.sample = (image[0].cpu(), label[0, 0].cpu(), segmentation[0].cpu())

    def _defined(self, loss: Tensor, batch: dict[str, Any], case: int) -> Tensor:
        """A case's validation loss, or infinity for one that is no number: then the epoch's mean is undefined, too.

        A MeanMetric would leave a NaN out, and what it then gave were the mean of fewer cases.
        """
        if torch.isfinite(loss):
            return loss
        log.warning(
            "case %s: the validation loss is %s in epoch %d; val_loss of this epoch is undefined",
            batch["case"][case], loss.item(), self.current_epoch,
        )  # fmt: skip
        return torch.full_like(loss, math.inf)

    def on_validation_epoch_end(self) -> None:
        """val_mIoU as the run folder defines it: Dice to IoU per case and class, mean over cases, then over classes."""
        mean, per_class = self.val_iou.compute()
        self.val_iou_per_class = per_class.cpu().numpy()
        self.log("val_mIoU", float(mean), logger=False, prog_bar=True)


def _plain(tensor: Tensor) -> Tensor:
    """A MetaTensor's bare tensor: metadata cost time in every operation of the network."""
    return tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor
