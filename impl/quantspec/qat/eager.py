"""What torch.compile leaves to Python: steps of training compute with kernels that it cannot trace."""

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

Method = TypeVar("Method", bound=Callable[..., Any])


def eager(method: Method) -> Method:
    """A method that torch.compile does not trace (QAT-COMPILE). ``torch.compiler.disable`` does that, and loads torch's
    compiler, which takes a second: so it is put on once that is loaded."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return method(*args, **kwargs)
        return torch.compiler.disable(method)(*args, **kwargs)  # type: ignore[no-untyped-call]

    call._torchdynamo_disable = True  # type: ignore[attr-defined]  # whoever traces a call stops here
    return cast(Method, call)
