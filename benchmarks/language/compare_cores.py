"""ZoAR beside vanilla and DAP beside the sphere, on small cores."""

from benchmarks.language.compare import of_papers, study

CHANGES = {"matrices": "od", "rank": 4, "head": "words"}
CORES = of_papers("cores-zo", 0.01, 0.03, 0.09, 0.27, 0.81, **CHANGES)
STUDY = study("methods compared on cores", CORES)
