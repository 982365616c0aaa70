"""What the compilers of accelerators plan for a step, on a machine without one.

Nothing is run: the TPU compiler (package libtpu) compiles for a topology that it is
told of, and says how much memory a device would need.
"""

from __future__ import annotations

import argparse
import importlib.util
import os

from benchmarks import UsageError, names_of

# Name: module, which has study(topology=...).
STUDIES = {"vectors": "benchmarks.accelerators.vectors"}
TOPOLOGIES = ("v4:2x2x1", "v5e:1x1", "v5e:2x4", "v5p:2x2x1", "v6e:2x2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the task."""
    # Before JAX is imported: it computes on the CPU, and libtpu neither looks for a TPU
    # nor asks the cloud's metadata server what machine this is.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from benchmarks import studies

    studies.add_arguments(parser, STUDIES)
    parser.add_argument(
        "--topology",
        type=names_of("topology", TOPOLOGIES),
        default="v5e:1x1",
        help="chips to compile for, separated by commas",
    )


def run(args: argparse.Namespace) -> None:
    """Runs the task."""
    from benchmarks import studies

    if importlib.util.find_spec("libtpu") is None:
        raise UsageError('libtpu is missing: pip install -e ".[bench,accelerators]"')
    from benchmarks.accelerators.compiled import devices

    # Before anything is written, and before threads: libtpu is loaded once.
    for name in args.topology:
        devices(name)
    studies.run(args, STUDIES, topology=list(args.topology))
