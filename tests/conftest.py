"""Eight host devices for the whole suite, set before JAX starts its backend."""

import os

flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8"

# The script that writes the references needs torch, which the tests do not.
collect_ignore = ["references"]
