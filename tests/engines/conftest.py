"""Every lowered segment and every plan that a test of the engines makes is checked."""

from collections.abc import Iterator

import pytest

from quantspec.engines.compiled import lowering, planner, verify


@pytest.fixture(autouse=True, scope="package")
def verified() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowering, "after_pass", verify.check_lowered)
        patch.setattr(planner, "after_plan", verify.check_plan)
        yield
