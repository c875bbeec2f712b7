"""How many cores other programs keep busy while something is measured here."""

from __future__ import annotations

import os
import time

import psutil

from pipeline.compute.memory import available_cores

BUSY_SHARE = 0.15
"""Share of the cores from which on other programs change what is measured: a machine at rest shows less than 0.01."""


class OtherPrograms:
    """Watches the cores that this process may use, from its making on.

    The work of this process, and of children that begin, end and are waited for meanwhile, is its own; any other, that
    of a virtual machine's neighbours on these cores included, is others'.
    """

    def __init__(self) -> None:
        self._began_s, self._all_s, self._own_s = time.monotonic(), _busy_s(), _own_s()

    def n_cores(self) -> float:
        """How many cores other programs have kept busy on average."""
        seconds = time.monotonic() - self._began_s
        others_s = (_busy_s() - self._all_s) - (_own_s() - self._own_s)
        return min(available_cores(), max(0.0, others_s / seconds)) if seconds else 0.0

    def disturb(self) -> bool:
        """Whether that is enough to change what is measured."""
        return self.n_cores() >= BUSY_SHARE * available_cores()


def _busy_s() -> float:
    """Seconds in which a core that this process may use was busy, over all such cores, since the system started."""
    cores = psutil.cpu_times(percpu=True)
    if hasattr(os, "sched_getaffinity"):
        mine = os.sched_getaffinity(0)
        cores = [core for number, core in enumerate(cores) if number in mine] or cores
    kinds = ("user", "nice", "system", "irq", "softirq", "steal")
    return sum(getattr(core, kind, 0.0) for core in cores for kind in kinds)


def _own_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
