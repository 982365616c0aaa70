"""What the whole suite shares, set before JAX starts: devices, quick compiles."""

import gc
import os
import shutil
import subprocess
import sys
import tempfile

import pytest
from hypothesis import HealthCheck, settings

# Most of the suite's time is XLA compiling small programs; these save much of it. To
# test what a user's process compiles name a flag in XLA_FLAGS with another value:
# --xla_cpu_use_fusion_emitters=true --xla_backend_optimization_level=3.
QUICK_COMPILES = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)


def accepted(flags: str) -> bool:
    """Whether this XLA knows the flags: it ends a process that names one it lacks."""
    start = [sys.executable, "-c", "import jax; jax.devices()"]
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(start, env=environment, capture_output=True).returncode == 0


# Workers and the commands under test inherit what is set here.
flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in flags:
    flags = f"{flags} --xla_force_host_platform_device_count=8"
for flag in QUICK_COMPILES:
    if flag.split("=")[0] not in flags and accepted(f"{flags} {flag}"):
        flags = f"{flags} {flag}"
os.environ["XLA_FLAGS"] = flags

# Programs that one worker, notebook or command has compiled are there for the others,
# as long as the suite runs.
CACHE = "JAX_COMPILATION_CACHE_DIR"
own_cache = None if CACHE in os.environ else tempfile.mkdtemp(prefix="zojax-programs-")
if own_cache is not None:
    os.environ[CACHE] = own_cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def pytest_unconfigure():
    """The process that made the cache removes it: the workers have ended by then."""
    if own_cache is not None:
        shutil.rmtree(own_cache, ignore_errors=True)


# These files take the longest: they come first, so that no worker waits for another.
LONG = ("notebooks", "language", "common", "mesh", "synthetic", "properties", "devices")


def pytest_collection_modifyitems(items):
    """Sorts by file; a file's tests keep their order."""

    def rank(item):
        name = item.path.stem
        long = [n for n, part in enumerate(LONG) if part in name]
        return long[0] if long else len(LONG)

    items.sort(key=rank)


# Of all property tests together; --hypothesis-profile=thorough for the larger number.
for profile, number in (("ci", 1000), ("thorough", 10_000)):
    settings.register_profile(
        profile,
        max_examples=number,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
settings.load_profile("ci")


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Thousands of compiled programs of past files cost memory, and time to collect."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()


# The script that writes the references needs torch, which the tests do not.
collect_ignore = ["references"]
