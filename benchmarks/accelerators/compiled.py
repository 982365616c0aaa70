"""Compiling for a chip that is not there, and reading what the compiler has planned."""

import functools
import importlib.util
import re
from pathlib import Path

import jax
from jax.experimental import topologies

from benchmarks import UsageError

GPU = "h100"
# Of an H100 with 80 GB, as XLA describes it: compiling needs no driver then.
TARGET = Path(__file__).with_name("h100.txtpb")
CUDA_PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
)


def check_installed(topology: str) -> None:
    """Raises where the package that compiles for it is missing."""
    installed = importlib.util.find_spec
    if topology == GPU and not any(map(installed, CUDA_PLUGINS)):
        way = f'pip install "jax[cuda13]=={jax.__version__}"'
        raise UsageError(f"the CUDA plugin of JAX is missing: {way}")
    if topology != GPU and installed("libtpu") is None:
        raise UsageError('libtpu is missing: pip install -e ".[bench,accelerators]"')


@functools.cache
def devices(topology: str) -> tuple[jax.Device, ...]:
    """The devices of a topology such as v5e:2x4, or of an H100, to compile for."""
    try:
        if topology == GPU:
            found = topologies.get_topology_desc(
                platform="cuda",
                topology_name=topology,
                target_config=TARGET.read_text(),
                topology="1x1x1",
            )
        else:
            found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # of several kinds, by version
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"cannot compile for {topology} here: {line}") from error
    return tuple(found.devices)


def operations(compiled: jax.stages.Compiled) -> dict[str, int]:
    """How many loops and collectives a program has; a started one counts once."""
    text = compiled.as_text()
    count = lambda *names: len(
        re.findall(rf"\s(?:{'|'.join(names)})(?:-start)?\(", text)
    )
    return {"loops": count("while"), "collectives": count(*COLLECTIVES)}
