"""The run that is killed: ``python -m benchmarks.external.killed DIRECTORY``."""

import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import optax

import zojax
from benchmarks.external import faults

STEPS, NUM_DIRECTIONS = 40, 8


def function(x: np.ndarray, query_id: int, query_key: np.ndarray) -> float:
    """A noisy sum of squares, of which some have no value."""
    time.sleep(0.01)
    if faults.fault_of(query_id) == "fails":
        raise RuntimeError("no value")
    return float(np.sum((x - 1.0) ** 2) + np.random.default_rng(query_key).normal())


def main(directory: str) -> None:
    """Goes on with the run, and prints all bits of its end."""
    logging.getLogger("zojax.external").setLevel(logging.ERROR)
    with ThreadPoolExecutor(4) as pool:
        end = zojax.external.optimize(
            function,
            np.zeros(10),
            zojax.dap(0.1, NUM_DIRECTIONS, key=0),
            optax.adam(0.05),
            STEPS,
            executor=pool,
            directory=directory,
        )
    print(end.params.tobytes().hex(), end.best_value.hex(), end.num_evaluations)


if __name__ == "__main__":
    main(sys.argv[1])
