"""The batches of a loader, the next one already on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader


class AheadLoader:
    """Yield what `prepare` makes of a loader's batches; `fetch` has the next one made while there is time for it.

    Its batches and their order are the loader's own, whether and whenever `fetch` is called.

    Args:
        loader: Its sampler is told the epoch by Lightning, which looks for it here.
        prepare: Such as moving to a GPU and augmenting there.
    """

    def __init__(self, loader: DataLoader, prepare: Callable[[Any], Any]) -> None:
        self.loader = loader
        self.prepare = prepare
        self.sampler, self.batch_sampler = loader.sampler, loader.batch_sampler
        self._batches: Iterator[Any] = iter(())
        self._fetched: list[Any] = []

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def _iterator(self) -> Any:
        """The loader's own, whose workers Lightning ends with a training; it looks for it here.

        Left alone, each of a loader with pinned memory keeps the program for 5 s at its end (torch before 2.13).
        """
        return self.loader._iterator

    @_iterator.setter
    def _iterator(self, iterator: Any) -> None:
        self.loader._iterator = iterator
        self._batches = iter(())

    def __iter__(self) -> Iterator[Any]:
        self._batches, self._fetched = iter(self.loader), []
        return self

    def __next__(self) -> Any:
        self.fetch()
        if not self._fetched:
            raise StopIteration
        return self._fetched.pop()

    def fetch(self) -> None:
        """Make the next batch unless it is there already, or there is none left."""
        if not self._fetched:
            batch = next(self._batches, None)
            if batch is not None:
                self._fetched.append(self.prepare(batch))
