"""What the compilers of accelerators plan for a step, on a machine without one.

Nothing is run: the TPU compiler (package libtpu), or XLA's for GPUs (JAX's CUDA
plugin), compiles for a chip that it is told of, and says how much memory it would need.
"""

from __future__ import annotations

import argparse
import os

from benchmarks import names_of

# Name: module, which has study(topology=...).
STUDIES = {
    "vectors": "benchmarks.accelerators.vectors",
    "models": "benchmarks.accelerators.models",
}
TOPOLOGIES = (
    *("v4:2x2x1", "v5e:1x1", "v5e:2x4", "v5e:8x8", "v5p:2x2x1", "v6e:1x1", "v6e:2x2"),
    "h100",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the task."""
    # Before JAX is imported: it computes on the CPU, and libtpu neither looks for a TPU
    # nor asks the cloud's metadata server what machine this is.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # Nothing runs on a TPU, so that several processes may load it.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
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
    from benchmarks.accelerators.compiled import check_installed, devices

    # Before anything is written, and before threads: a compiler is loaded once.
    for name in args.topology:
        check_installed(name)
    for name in args.topology:
        devices(name)
    studies.run(args, STUDIES, topology=list(args.topology))
