"""Other programs: their work is told from this program's own."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from pipeline.compute.memory import available_cores
from pipeline.compute.other_programs import OtherPrograms

BURN = "import time\nuntil = time.monotonic() + {}\nwhile time.monotonic() < until: pass"


def burners(seconds):
    command = [sys.executable, "-c", BURN.format(seconds)]
    return [subprocess.Popen(command) for _ in range(available_cores())]


def test_what_others_do_is_seen_while_they_do_it():
    others = OtherPrograms()
    running = burners(30)  # other programs until somebody waits for their end
    try:
        time.sleep(1.5)
        assert others.n_cores() > 0.5 * available_cores()
        assert others.disturb()
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_ones_own_work_is_not_that_of_others():
    others, before, began = OtherPrograms(), os.times(), time.monotonic()
    for process in burners(1.5):
        process.wait()
    seconds, after = time.monotonic() - began, os.times()
    own = (after.children_user - before.children_user) / seconds
    # However busy the machine is: there are no more cores, and these did their own work meanwhile.
    assert own > 0.1
    assert others.n_cores() <= available_cores() - own + 0.1
