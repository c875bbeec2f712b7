"""Prepared cases as a MONAI dataset: read from the cache, then augmented."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.data import Dataset

from pipeline.cache.build import build_entries
from pipeline.cache.case_store import CaseStore
from pipeline.cache.entry import CacheError, StoredEntry, read_entry, read_header
from pipeline.cache.key import sha256
from pipeline.console.progress import Progress
from pipeline.console.text import one_line
from transforms.chains import root_cause


class CachedDataset(Dataset):
    """Cases prepared by a deterministic chain, read from a cache that processes and trainings share.

    The deterministic half of a chain runs once a case; every later epoch and training reads the result.

    Item `i`, or `(epoch, i)`, is {"image": MetaTensor float32 (C, I, J, K), "label": MetaTensor uint8 or uint16
    (1, I, J, K) if the case has one, "case": id}, both with the affine after preprocessing; image.meta also holds
    "original_affine" and "spatial_shape" of the source; whatever else its entry in `items` says of the case comes
    along. A stored image differs from the chain's by at most
    (greatest − least of its channel) / 131070; a label does not differ.

    `transform`, a MONAI Compose, is applied to what was read. It is seeded again for every item: for
    `(epoch, i)` from `seed`, epoch and case alone, so that neither workers nor order nor process matter; for `i` from
    torch's generator, so that epochs differ.

    Call `build()` before training; an item whose entry is missing or damaged is otherwise built when it is asked for.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        chain: Callable[[Any], Any],
        *,
        folder: str | os.PathLike[str],
        key: Mapping[str, Any],
        n_classes: int,
        transform: Callable[[Any], Any] | None = None,
        seed: int = 0,
        max_bytes: int | None = None,
        with_places: bool = False,
        in_parts: bool = False,
    ) -> None:
        """Name the cases and how they are prepared; opens the folder and prepares nothing.

        Args:
            items: each holds "image" and "case", and "label" if the case has one, in the forms LoadVolumed takes (a
                path, a sequence of paths, or of (class index, path)). An entry is found by the content of these files.
            chain: maps an item to {"image": ..., "label": ...}.
            folder: the cache folder, made if need be.
            key: the chain's parameters, JSON-able: whatever changes the chain's result must be in it. The code of
                `transforms` and the versions of the libraries that read and resample are added to it.
            n_classes: number of classes, background included.
            transform: applied to every item that was read.
            seed: decides the random numbers of `transform`.
            with_places: store voxels of every class with the case, for placing patches; such entries have other names.
            in_parts: give `transform` {"stored": StoredEntry, "epoch": epoch, "case": id}, of which it reads what it
                needs, instead of image and label.
            max_bytes: size of the folder above which `build` removes the least recently used entries of other chains.

        Raises:
            CacheError: `key` is not JSON-able, or the folder cannot be used.
        """
        self.store = CaseStore(items, chain, folder=folder, key=key, n_classes=n_classes, with_places=with_places)
        super().__init__(self.store.items, transform)
        self.seed = seed
        self.max_bytes = max_bytes
        self.in_parts = in_parts
        self._verified: set[int] = set()

    def __getitem__(self, index: Any) -> Any:
        """Return the item of an int, a pair (epoch, int) or, for the n-th patch of a case, a triple (epoch, int, n).

        A slice or a list gives a Subset, as in MONAI.

        Raises:
            CacheError: the case cannot be prepared or augmented; any error of the chain itself.
        """
        if isinstance(index, tuple):
            epoch, position, *patch = index
            return self._item(position, " ".join([f"epoch {epoch}", *(f"patch {n}" for n in patch)]), epoch)
        return super().__getitem__(index)

    def build(self, progress: Progress | None = None, *, workers: int | None = None) -> None:
        """Prepare every case whose entry is missing or damaged, in `workers` processes (None: by cores and memory).

        Raises:
            CacheBuildError: every case that failed, after all others were prepared.
            CacheError: before the work, if the entries would not fit the disk or `max_bytes`.
        """
        build_entries([self.store], progress, workers=workers, max_bytes=self.max_bytes)

    def class_voxels(self, index: int) -> np.ndarray:
        """Return the voxels of every class in the prepared label, int64 (n_classes,); ignored voxels do not count.

        Raises:
            CacheError: the case has no label, or cannot be prepared.
        """
        counts = self.store.read(index, read_header).class_voxels
        if counts is None:
            raise CacheError(f"case {self.store.case(index)}: it has no label to count classes in")
        return np.array(counts, np.int64)

    def size(self, index: int) -> tuple[int, ...]:
        """Return the voxels (I, J, K) of the prepared case. Raises CacheError where it cannot be prepared."""
        return self.store.read(index, read_header).image_shape[1:]

    def _transform(self, index: int) -> Any:
        # MONAI's Dataset calls this for an int
        return self._item(index, f"draw {int(torch.randint(2**62, ()))}" if self.transform.transforms else "")

    def _item(self, index: int, draw: str, epoch: int = 0) -> Any:
        case = self.store.case(index)
        item = {key: said for key, said in self.store.items[index].items() if key not in ("image", "label")}
        item["case"] = case
        if self.in_parts:
            item["stored"] = self.store.read(index, partial(StoredEntry, verify=index not in self._verified))
            item["epoch"] = epoch
            self._verified.add(index)
        else:
            _, item["image"], label = self.store.read(index, read_entry)
            if label is not None:
                item["label"] = label
        self.transform.set_random_state(seed=_hash_to_seed(self.seed, draw, case))
        try:
            return self.transform(item)
        except Exception as error:
            cause = root_cause(error)
            if isinstance(cause, MemoryError):
                raise cause from error
            what = one_line(f"{type(cause).__name__}: {cause}")
            raise CacheError(f"case {case}: it cannot be augmented ({what}); check this case") from error


def _hash_to_seed(*parts: object) -> int:
    """32 bits that depend on nothing but the parts, unlike hash(), which Python salts in every process."""
    return int(sha256([str(part) for part in parts])[:8], 16)
