"""The README's example runs as it stands."""

import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_example():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    final = names["loss"](names["params"], names["target"])
    assert float(final) <= 5


def test_every_estimator_and_sampler_is_in_the_tables():
    from registry import ESTIMATORS, SAMPLERS

    import zojax

    for factory in [case.factory for case in ESTIMATORS.values()]:
        assert f"`{factory.__name__}" in README
    for name in SAMPLERS:
        assert f"`{name}(" in README
    assert (
        zojax.__version__ in (Path(__file__).parent.parent / "CHANGELOG.md").read_text()
    )
