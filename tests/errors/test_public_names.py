"""The names of the package."""

import subprocess
import sys

import pytest

import quantspec

SERVED = """
import sys
import quantspec.backends.server, quantspec.backends.reference, quantspec.numerics.dialects.named
sys.exit("torch" in sys.modules)
"""


def test_public_names_are_what_their_modules_hold():
    for name, module in quantspec.MODULES.items():
        assert getattr(quantspec, name) is getattr(sys.modules[f"quantspec.{module}"], name)
        assert name in dir(quantspec)
    assert sorted(quantspec.__all__) == sorted([*quantspec.MODULES, "zoo"])


def test_the_zoo_is_a_public_module():
    from quantspec import zoo
    from quantspec.tutorial import zoo as own

    assert zoo is quantspec.zoo is own
    assert set(zoo.__all__) < set(vars(zoo))


def test_other_names_are_errors():
    with pytest.raises(AttributeError, match="module 'quantspec' has no attribute 'quantise'"):
        quantspec.quantise  # noqa: B018


def test_a_backend_of_numpy_is_served_without_pytorch():
    assert subprocess.run([sys.executable, "-c", SERVED]).returncode == 0
