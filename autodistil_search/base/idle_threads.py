"""Idle threads of OpenMP: how long they wait for work in a loop before they sleep."""

from __future__ import annotations

import os
import sys

SPINS = 1000
"""Turns of the loop in which an idle thread waits. GNU OpenMP's own number, 300,000, takes milliseconds: beside another
busy process, threads then wait for a thread that has no processor. Without a loop, waking a thread takes longer than
many of our operations (docs/benchmarks.md, busy machines)."""

VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""Variables by which a user decides instead."""


def let_idle_threads_sleep() -> None:
    """Set the number of turns for this process and its children, unless the environment has one of `VARIABLES`.

    OpenMP reads it once, when torch is loaded. The variable is GNU OpenMP's, which torch uses on Linux; other
    implementations ignore it.
    """
    if not any(name in os.environ for name in VARIABLES) and "torch" not in sys.modules:
        os.environ[VARIABLES[0]] = str(SPINS)
