"""Accuracy itself as the objective, beside cross-entropy, at equal forward passes."""

from benchmarks.language.compare import Comparison, study
from benchmarks.language.recipe import OBJECTIVES, PRESETS

# A share of wrong labels moves in steps of one sentence: more sentences and directions
# than cross-entropy needs, and the same for both.
BASE = PRESETS["lora-zo"][1].replace(
    top=10, batch=64, directions=2, sentences=1024, clip=0.0
)
OBJECTIVE = Comparison(
    BASE,
    {objective: {"objective": objective} for objective in OBJECTIVES},
    {"accuracy": "cross-entropy"},
    [
        {"smoothing": smoothing, "learning_rate": rate}
        for smoothing in (0.01, 0.03)
        for rate in (0.1, 0.4)
    ],
    by="accuracy",
)
STUDY = study("objectives", OBJECTIVE)
