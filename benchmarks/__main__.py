"""The command ``python -m benchmarks TASK``.

A task is a module of this package with a ``command``. It is imported only when it is
asked for.
"""

import importlib
import sys
from collections.abc import Sequence

import click

# To add a task, add its module's name and one line about it.
TASKS = {
    "attack": "Black-box attack on a classifier of images.",
    "language": "Fine-tuning a language model with forward passes only.",
    "mesh": "Moving the vertices of a mesh until a PDE is solved better.",
    "synthetic": "Both papers' experiments on synthetic functions.",
    "speed": "Time of a step, beside rivals and by size.",
    "memory": "Memory of a step, as it is planned.",
    "policy": "Policies tuned by their returns, beside evolution strategies.",
    "spsa": "SPSA and its options on noisy functions, beside others.",
    "external": "Programs and simulators that fail, hang and are killed.",
    "accelerators": "Memory of a step as a TPU's compiler plans it, without a TPU.",
}


# Packages that only comparisons need.
RIVALS = ("torch", "evosax", "gymnax", "brax", "noisyopt", "cocoex")


class Tasks(click.Group):
    """The tasks; help on all of them imports none."""

    def list_commands(self, ctx):
        """Their names."""
        return list(TASKS)

    def get_command(self, ctx, cmd_name):
        """The one of this name."""
        if cmd_name not in TASKS:
            return None
        return importlib.import_module(f"benchmarks.{cmd_name}").command

    def format_commands(self, ctx, formatter):
        """A line each."""
        with formatter.section("Tasks"):
            formatter.write_dl(list(TASKS.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    tasks = Tasks("benchmarks", help="The problems that zojax is measured on.")
    try:
        # Not tasks.main: it would swallow what an interrupted task says it has kept.
        with tasks.make_context("python -m benchmarks", argv) as ctx:
            tasks.invoke(ctx)
        return 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "python -m benchmarks"
        status, line = 2, f"{error.format_message()} (see {path} --help)"
    except click.ClickException as error:
        status, line = 2, error.message
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "benchmarks", "zojax"):
            raise
        extra = "rivals" if package in RIVALS else "bench"
        status, line = 1, f'{package} is missing: pip install -e ".[{extra}]"'
    except KeyboardInterrupt as stop:
        # A task that had something to keep says so in the exception.
        status, line = 130, f"interrupted; {str(stop) or 'nothing new was kept'}"
    print(f"benchmarks: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
