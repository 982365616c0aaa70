"""Eight host devices for the whole suite, set before JAX starts its backend."""

import gc
import os
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, settings

# Most of the suite's time is XLA compiling small programs; these nearly halve it. To
# test what a user's process compiles: XLA_FLAGS=--xla_cpu_use_fusion_emitters=true.
QUICK_COMPILES = (
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

# Of all property tests together; --hypothesis-profile=thorough for the larger number.
for profile, number in (("ci", 2000), ("thorough", 10_000)):
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
