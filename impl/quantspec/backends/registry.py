"""The backends that quantspec knows, how each is made, and what it needs. Peers are extras: one that is not there is
not installed, and no failure."""

import importlib
import importlib.util
from dataclasses import dataclass, field, replace
from typing import cast

from quantspec.errors import expected_one_of
from quantspec.numerics.dialects.named import DIALECTS

from .protocol import Backend

OTHERS = "Others"


@dataclass(frozen=True)
class Entry:
    """``factory`` is ``module:attribute``, called with ``arguments``; ``needs`` are importable modules, which ``extra``
    brings; ``environment`` is set in the worker that runs it, before anything is imported. ``family`` is what it stands
    beside in the matrix."""

    name: str
    factory: str
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    extra: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    family: str = OTHERS

    def make(self) -> Backend:
        """The backend, in this process. Raises NotOffered when this build of the peer cannot, ImportError when it is
        not there."""
        module, _, attribute = self.factory.partition(":")
        return cast(Backend, getattr(importlib.import_module(module), attribute)(*self.arguments))


# FBGEMM and oneDNN choose kernels by what the CPU has; these make them choose as on one without VNNI, in a process that
# has not loaded them yet.
NO_VNNI = {"FBGEMM_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
TORCH_ENGINES = ("x86", "fbgemm", "onednn", "qnnpack")
LITERT_KERNELS = ("xnnpack", "builtin", "reference")
LITERT_MODULES = ("ai_edge_litert", "flatbuffers")
HERE = "quantspec.backends"
POINTWISE = f"{HERE}.pytorch.pointwise:OnednnPointwise"

ENTRIES: dict[str, Entry] = {
    entry.name: replace(entry, family=family)
    for family, entries in {
        "PyTorch's engines": [
            *(Entry(f"torch-{engine}", f"{HERE}.pytorch.engines:TorchEngine", (engine,)) for engine in TORCH_ENGINES),
            *(
                Entry(f"torch-{engine}-no-vnni", f"{HERE}.pytorch.engines:TorchEngine", (engine,), environment=NO_VNNI)
                for engine in ("x86", "fbgemm", "onednn")
            ),
        ],
        "PyTorch outside of its engines": [
            Entry("torch-fake-quantize", f"{HERE}.pytorch.fake_quantize:TorchFakeQuantize"),
            Entry("torch-decomposed", f"{HERE}.pytorch.fake_quantize:TorchDecomposed"),
            Entry("torch-onednn-pointwise", POINTWISE, ("uint8",)),
            Entry("torch-onednn-pointwise-int8", POINTWISE, ("int8",)),
            Entry("torch-onednn-pointwise-no-vnni", POINTWISE, ("uint8",), environment=NO_VNNI),
        ],
        "ONNX, LiteRT, OpenVINO": [
            Entry("onnx-reference", f"{HERE}.onnx.reference:OnnxReference", needs=("onnx",), extra="onnx"),
            Entry("onnxruntime", f"{HERE}.onnx.runtime:OnnxRuntime", needs=("onnx", "onnxruntime"), extra="onnx"),
            *(
                Entry(f"litert-{kernels}", f"{HERE}.litert.litert:LiteRT", (kernels,), LITERT_MODULES, "litert")
                for kernels in LITERT_KERNELS
            ),
            Entry("openvino", f"{HERE}.openvino:OpenVINO", needs=("openvino",), extra="openvino"),
        ],
        "quantspec itself": [
            Entry(f"quantspec-{name}", f"{HERE}.reference:ReferenceBackend", (name,)) for name in DIALECTS
        ],
    }.items()
    for entry in entries
}


def find(name: str) -> Entry:
    """The entry of a known backend, or one for ``my_package.my_module:MyBackend``. ValueError for anything else,
    listing the known ones: quantspec's own where the name begins like theirs, and all others otherwise."""
    if name in ENTRIES:
        return ENTRIES[name]
    module, _, attribute = name.partition(":")
    if module and attribute and not module.startswith("."):
        return Entry(name, name)
    of_ours = name.startswith("quantspec")
    listed = [known for known in ENTRIES if known.startswith("quantspec-") == of_ours]
    others = ", or module:attribute" if of_ours else ", quantspec-DIALECT, or module:attribute"
    raise ValueError(expected_one_of("backend", listed, name, others=others))


def why_not_installed(name: str) -> str:
    """What is missing to run a backend, in words; empty when nothing is. Imports nothing but the parents of a dotted
    name."""
    entry = find(name)
    module = entry.factory.partition(":")[0]
    for needed in (*entry.needs, module):
        try:
            found = importlib.util.find_spec(needed) is not None
        except (ModuleNotFoundError, ValueError):  # the second is said of what was not imported, such as __main__
            found = False
        if not found:
            remedy = f"; pip install 'quantspec[{entry.extra}]'" if entry.extra else ""
            return f"not installed: there is no module {needed}{remedy}"
    return ""


def installed(name: str) -> bool:
    """Whether everything that a backend needs can be imported; ``why_not_installed`` says what cannot."""
    return not why_not_installed(name)
