"""What the compilers of accelerators plan for a step, on a machine without one.

Nothing is run: the TPU compiler (package libtpu), or XLA's for GPUs (JAX's CUDA
plugin), compiles for a chip that it is told of, and says how much memory it would need.
"""

import os

# Before JAX is imported: it computes on the CPU, and libtpu neither looks for a TPU
# nor asks the cloud's metadata server what machine this is. Nothing runs on a TPU, so
# that several processes may load it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import click

from benchmarks import chosen, studies

STUDIES = ("vectors", "models")
TOPOLOGIES = (
    *("v4:2x2x1", "v5e:1x1", "v5e:2x4", "v5e:8x8", "v5p:2x2x1", "v6e:1x1", "v6e:2x2"),
    "h100",
)


def prepare(topology: list[str]) -> None:
    """Loads the compilers, before anything is written and before threads."""
    from benchmarks.accelerators.compiled import check_installed, devices

    for name in topology:
        check_installed(name)
    for name in topology:
        devices(name)


command = studies.command(
    __name__,
    STUDIES,
    options=[
        click.Option(
            ["--topology"],
            default="v5e:1x1",
            callback=lambda ctx, option, text: chosen("--topology", text, TOPOLOGIES),
            help=f"chips to compile for, separated by commas: {', '.join(TOPOLOGIES)}",
        )
    ],
    prepare=prepare,
)
