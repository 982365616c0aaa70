"""The command ``python -m benchmarks TASK``.

A task is a module of this package with ``add_arguments(parser)`` and ``run(args)``. It
is imported only when it is asked for.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from benchmarks import UsageError

# To add a task, add its module's name and one line about it.
TASKS = {
    "attack": "black-box attack on a classifier of images",
    "language": "fine-tuning a language model with forward passes only",
    "mesh": "moving the vertices of a mesh until a PDE is solved better",
    "synthetic": "both papers' experiments on synthetic functions",
    "speed": "time of a step, beside rivals and by size",
    "memory": "memory of a step, planned and at its peak",
    "policy": "policies tuned by their returns, beside evolution strategies",
    "spsa": "SPSA and its options on noisy functions, beside others",
    "external": "programs and simulators that fail, hang and are killed",
    "accelerators": "memory of a step as a TPU's compiler plans it, without a TPU",
}


# Packages that only comparisons need.
RIVALS = ("torch", "evosax", "gymnax", "brax", "noisyopt", "cocoex")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports bad arguments in one line, by an exception."""

    def error(self, message):
        raise UsageError(f"{message} (see {self.prog} --help)")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the command line; imports the module of the task that it names."""
    parser = Parser(prog="python -m benchmarks", description="Benchmarks of zojax.")
    tasks = parser.add_subparsers(dest="task", metavar="TASK", required=True)
    for name, summary in TASKS.items():
        task_parser = tasks.add_parser(
            name,
            help=summary,
            description=summary[:1].upper() + summary[1:] + ".",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        if name in argv[:1]:
            module = importlib.import_module(f"benchmarks.{name}")
            module.add_arguments(task_parser)
            task_parser.set_defaults(run=module.run)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        args.run(args)
    except UsageError as error:
        status, line = 2, str(error)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "benchmarks", "zojax"):
            raise
        extra = "rivals" if package in RIVALS else "bench"
        status, line = 1, f'{package} is missing: pip install -e ".[{extra}]"'
    except KeyboardInterrupt as stop:
        # A task that had something to keep says so in the exception.
        status, line = 130, f"interrupted; {str(stop) or 'nothing new was kept'}"
    else:
        return 0
    print(f"benchmarks: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
