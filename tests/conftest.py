"""XLA for the whole suite, set before JAX starts its backend."""

import os

FLAGS = {
    "--xla_force_host_platform_device_count": 8,
    # Most of the suite's time is compiling small programs.
    "--xla_backend_optimization_level": 0,
}
given = os.environ.get("XLA_FLAGS", "")
added = [f"{flag}={value}" for flag, value in FLAGS.items() if flag not in given]
os.environ["XLA_FLAGS"] = " ".join([given, *added]).strip()
