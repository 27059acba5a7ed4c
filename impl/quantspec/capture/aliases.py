"""Values of a graph that lie in each other's memory, so that a write to one reaches the other: always, as in a view, or
at some calls, by how an input lies in memory. A graph, whose operations give new values, says neither."""

from collections import defaultdict
from enum import IntEnum
from typing import Any

from torch import fx, nn
from torch._ops import OpOverload, OpOverloadPacket

from quantspec.errors import UnsupportedError
from quantspec.ir.rearrange import qualified_name

# By the names of functions and methods.
SOMETIMES = frozenset(
    """
    contiguous reshape reshape_as flatten ravel to type type_as float double half bfloat16 long int short char byte bool
    cpu to_dense asarray sum_to_size cartesian_prod conj_physical resolve_conj resolve_neg
    """.split()
)
VIEWS = frozenset(
    """
    view view_as transpose permute t T mT H mH numpy_T adjoint swapaxes swapdims movedim moveaxis squeeze unsqueeze
    expand expand_as broadcast_to narrow select chunk split tensor_split hsplit vsplit dsplit unbind diagonal unfold
    detach data alias getitem unflatten real imag view_as_real view_as_complex dropout atleast_1d atleast_2d
    atleast_3d as_tensor requires_grad_ __getitem__ pos positive conj split_with_sizes unsafe_chunk unsafe_split
    unsafe_split_with_sizes broadcast_tensors meshgrid
    """.split()
)
# Of which one place in memory may be several values, so that their items are not apart.
OVERLAPPING = frozenset("expand expand_as broadcast_to unfold broadcast_tensors meshgrid".split())
# What gives views of each of its arguments.
OF_SEVERAL = frozenset("broadcast_tensors meshgrid atleast_1d atleast_2d atleast_3d".split())
SOMETIMES_MODULES = (nn.Flatten,)
VIEW_MODULES = nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Unflatten
ITEMS = ("getitem", "__getitem__")
# What says, or depends on, how a tensor lies in memory.
LAYOUT = frozenset({"as_strided", "stride", "storage_offset"})
# What makes something else than tensors and Python's numbers of one.
BEYOND = frozenset(
    """
    numpy __array__ __dlpack__ data_ptr storage untyped_storage set_ register_hook backward __reduce_ex__ __deepcopy__
    """.split()
)

# Whose functions are known by their names; those without a module are built into torch.
SEEN = ("torch", "operator", "_operator", "math", "builtins", "quantspec", "None")

SHARED = "it writes to a tensor and reads another one that lies in its memory"
WRITTEN = "it writes to a tensor and reads one that may share its memory, depending on the layout of an input"
TO_CONSTANT = "it writes to a tensor that it makes without its inputs"
HIDDEN = "may write to its arguments in a way that cannot be seen"
TOLD_LAYOUT = "Python reads the memory layout of a tensor"


class Shares(IntEnum):
    """How two values have memory in common."""

    ITSELF = 0  # the one is the other after a write, and is read in its place from then on
    ALWAYS = 1
    SOMETIMES = 2


def name_of(node: fx.Node) -> str:
    """The name of what a node calls."""
    return str(node.target) if node.op == "call_method" else str(getattr(node.target, "__name__", ""))


def shares(node: fx.Node, modules: dict[str, nn.Module]) -> Shares | None:
    """How a node's result and its first argument have memory in common; None where they have none."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        if isinstance(module, SOMETIMES_MODULES):
            return Shares.SOMETIMES
        return Shares.ALWAYS if isinstance(module, VIEW_MODULES) else None
    if node.op not in ("call_method", "call_function"):
        return None
    name = str(node.args[1]) if node.target is getattr else name_of(node)
    return Shares.SOMETIMES if name in SOMETIMES else Shares.ALWAYS if name in VIEWS else None


def check(graph: fx.Graph, modules: dict[str, nn.Module], writes: dict[fx.Node, fx.Node]) -> None:
    """Raises UnsupportedError where a graph writes to what is, or only sometimes is, in the memory of another value of
    it that is read later, to a constant, or to a tensor that it is given for the result, which would be the same one at
    each call, and where a value is no tensor's any more, or is one that depends on the type of an argument.
    ``writes``: the operations in place, each with what it writes to."""
    order = {node: number for number, node in enumerate(graph.nodes)}
    memory = Memory()
    for node in graph.nodes:
        if node.op in ("call_method", "call_function") and name_of(node) in LAYOUT:
            raise UnsupportedError(TOLD_LAYOUT)
        if node.target == "__setitem__" or (node in writes and writes[node].op == "get_attr"):
            raise UnsupportedError(TO_CONSTANT)
        if node.op == "call_method" and node.target in BEYOND:
            raise UnsupportedError(f"{node.target}() makes something else than a tensor")
        if node.op == "call_method" and node.target == "new":
            raise UnsupportedError("new() makes values of one argument and memory of another")
        if node.op != "call_module" and node.kwargs.get("out") is not None:
            raise UnsupportedError(f"{name_of(node)} writes to its out= tensor")
        how = Shares.ITSELF if node in writes else shares(node, modules)
        if how is not None:
            for source in node.all_input_nodes if name_of(node) in OF_SEVERAL else node.args[:1]:
                if isinstance(source, fx.Node):
                    memory.add(node, source, how)
    for write, target in writes.items():
        for other, how in memory.around(target):
            if how is Shares.ITSELF or order[other] > order[write]:
                continue
            if any(order[user] > order[write] for user in other.users):
                raise UnsupportedError(SHARED if how is Shares.ALWAYS else WRITTEN)


def hides_writes(target: Any) -> bool:
    """Whether a function may write to what it is given without its name saying so: an operator whose schema says it, or
    what torch.fx was told not to look into, unless it is torch's, Python's or ours. Classes make outputs."""
    if isinstance(target, OpOverload):
        return target._schema.is_mutable and not target._overloadname.endswith("out")  # which writes to out= alone
    if isinstance(target, OpOverloadPacket):
        names = target.overloads()  # type: ignore[no-untyped-call]  # torch has no types there
        return any(hides_writes(getattr(target, name)) for name in names)
    return not isinstance(target, type) and qualified_name(target).partition(".")[0] not in SEEN


class Memory:
    """Which values lie in the memory of which: each in that of some that were made before it, its sources."""

    def __init__(self) -> None:
        self.sources: dict[fx.Node, list[tuple[fx.Node, Shares]]] = defaultdict(list)
        self.made: dict[fx.Node, list[tuple[fx.Node, Shares]]] = defaultdict(list)

    def add(self, node: fx.Node, source: fx.Node, how: Shares) -> None:
        self.sources[node].append((source, how))
        self.made[source].append((node, how))

    def around(self, node: fx.Node) -> list[tuple[fx.Node, Shares]]:
        """The values that have memory in common with one, and how."""
        found = self.within(node, Shares.ITSELF)
        left = [(node, Shares.ITSELF)]
        while left:
            inner, total = left.pop()
            for source, how in self.sources[inner]:
                reached = max(total, how)
                found.append((source, reached))
                left.append((source, reached))
                for other, more in self.made[source]:
                    if other is not inner and (self.overlaps(source) or not apart(inner, other)):
                        beside = max(reached, more)
                        found += [(other, beside), *self.within(other, beside)]
        return found

    def within(self, node: fx.Node, total: Shares) -> list[tuple[fx.Node, Shares]]:
        """The values that lie in the memory of one."""
        found, left = [], [(node, total)]
        while left:
            source, how = left.pop()
            inner = [(other, max(how, more)) for other, more in self.made[source]]
            found += inner
            left += inner
        return found

    def overlaps(self, node: fx.Node) -> bool:
        """Whether several values of one may lie in the same place."""
        return name_of(node) in OVERLAPPING or any(self.overlaps(source) for source, _ in self.sources[node])


def apart(a: fx.Node, b: fx.Node) -> bool:
    """Whether two values of one source are items of it that have nothing in common, by their indices."""
    if name_of(a) not in ITEMS or name_of(b) not in ITEMS or len(a.args) < 2 or len(b.args) < 2:
        return False
    mine, others = index_of(a), index_of(b)
    for one, other in zip(mine, others):
        if one is Ellipsis or other is Ellipsis:
            if one is not other or len(mine) != len(others):  # what comes after it counts axes from the last one
                return False
        elif isinstance(one, int) and isinstance(other, int):
            if one != other and (one < 0) == (other < 0):
                return True
        elif isinstance(one, slice) and isinstance(other, slice):
            if before(one, other) or before(other, one):
                return True
        else:
            return False
    return False


def index_of(node: fx.Node) -> tuple[Any, ...]:
    return node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)


def before(one: slice, other: slice) -> bool:
    """Whether a slice ends before another one begins, both with bounds that count from the start."""
    end, start = one.stop, other.start
    return isinstance(end, int) and isinstance(start, int) and 0 <= end <= start
