"""Drawn alike every time: Hypothesis' settings and seeds, so that no record depends on how the code is written."""

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar
from unittest import mock

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture.providers import HypothesisProvider

T = TypeVar("T")

# What the records under ``spec/results`` were drawn with. Without a seed, Hypothesis takes the digest of a test's
# source.
CHECK_SEED = 0xF9371D1F1413D9A461EC22ED164E13853315C75D4BE242A3E732022A9F49DB8AEA451855F3F30C2E99A5C03C29525F3B
STORY_SEED = 0x62E1E256A8B5884B824B84E0DCBF37E2D5BD4021F64B66284ED86CB58024C7776B6BB972EC3441CE085BB21F35ABFE39
PROBE_SEED = 0xCEE64E7B260D56F1DA62D80B5459B69DED8A0503F7C50F77270BA4DF51C52994A0DC1EEC6410E54E8F2353188159F171
PASSED_SEED = 0x2C5D8F
FULL_RANGE_SEED = 0xF995745E3BC3B03751098F525F907DFEBFD9582A87A44DE4BC6D8B4A7F58369DB8A8D2C290F08BC68F0ABD46E4F5D3D6


def profile(examples: int) -> settings:
    """Settings for so many examples; small calls are looked for by ``shrink``, which knows what a call is."""
    return settings(
        max_examples=examples, phases=[Phase.generate], derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def drawn_alike() -> contextlib.AbstractContextManager[Any]:
    """Calls are drawn alike inside, whatever code there is. Else one number in twenty is a constant of some module that
    happens to be loaded, so that a line changed anywhere would change every record."""
    return mock.patch.object(HypothesisProvider, "_maybe_draw_constant", lambda *arguments, **options: None)


def for_all(strategy: st.SearchStrategy[T], test: Callable[[T], None], *, examples: int, start: int) -> None:
    """Draws so many examples for a test, from the seed ``start``; raises what the test raises."""

    @seed(start)
    @profile(examples)
    @given(strategy)
    def holds(example: T) -> None:
        test(example)

    with drawn_alike():
        holds()


def sample(strategy: st.SearchStrategy[T], *, examples: int, start: int) -> list[T]:
    """So many examples, the same every time."""
    found: list[T] = []
    for_all(strategy, found.append, examples=examples, start=start)
    return found
