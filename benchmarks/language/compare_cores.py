"""ZoAR beside vanilla and DAP beside the sphere, on small cores."""

import functools

from benchmarks.language import compare

STUDY = compare.STUDY._replace(
    title="Language: methods compared on cores",
    cells=functools.partial(compare.cells, base=compare.CORES),
)
