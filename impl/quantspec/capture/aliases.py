"""Operations that give a view of their input at some calls and a copy at others, by how it lies in memory: a write to
one of the two reaches the other, or does not, and no graph says which."""

from collections import defaultdict

from torch import fx, nn

from quantspec.errors import UnsupportedError

# By the names of functions and methods.
SOMETIMES = frozenset(
    """
    contiguous reshape reshape_as flatten ravel to type type_as float double half bfloat16 cpu resolve_conj resolve_neg
    """.split()
)
VIEWS = frozenset(
    """
    view view_as transpose permute t T mT H mH numpy_T adjoint swapaxes swapdims movedim moveaxis squeeze unsqueeze
    expand expand_as broadcast_to narrow select chunk split tensor_split hsplit vsplit dsplit unbind diagonal unfold
    detach alias getitem getattr unflatten real imag view_as_real view_as_complex dropout atleast_1d atleast_2d
    atleast_3d as_tensor requires_grad_ __getitem__
    """.split()
)
SOMETIMES_MODULES = (nn.Flatten,)
VIEW_MODULES = nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Unflatten
# What says, or depends on, how a tensor lies in memory.
LAYOUT = frozenset({"as_strided", "stride", "storage_offset"})
# What makes something else than tensors and Python's numbers of one.
BEYOND = frozenset(
    """
    numpy __array__ __dlpack__ data_ptr storage untyped_storage set_ register_hook backward __reduce_ex__ __deepcopy__
    """.split()
)

WRITTEN = "it writes to a tensor and reads one that may share its memory, depending on the layout of an input"
TOLD_LAYOUT = "Python reads the memory layout of a tensor"


def name_of(node: fx.Node) -> str:
    """The name of what a node calls."""
    return str(node.target) if node.op == "call_method" else str(getattr(node.target, "__name__", ""))


def shares(node: fx.Node, modules: dict[str, nn.Module]) -> bool | None:
    """Whether a node's result lies in the memory of its first argument: None for at some calls."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return None if isinstance(module, SOMETIMES_MODULES) else isinstance(module, VIEW_MODULES)
    if node.op not in ("call_method", "call_function"):
        return False
    name = name_of(node)
    return None if name in SOMETIMES else name in VIEWS


def check(graph: fx.Graph, modules: dict[str, nn.Module], writes: dict[fx.Node, fx.Node]) -> None:
    """Raises UnsupportedError where a graph writes to what only sometimes is another value of it that is read later, or
    to a tensor that it is given for the result, which would be the same one at each call, and where a value is no
    tensor's any more.
    ``writes``: the operations in place, each with what it writes to."""
    order = {node: number for number, node in enumerate(graph.nodes)}
    near: dict[fx.Node, list[tuple[fx.Node, bool, int]]] = defaultdict(list)
    uncertain = False
    for node in graph.nodes:
        if node.op in ("call_method", "call_function") and name_of(node) in LAYOUT:
            raise UnsupportedError(TOLD_LAYOUT)
        if node.op == "call_method" and node.target in BEYOND:
            raise UnsupportedError(f"{node.target}() makes something else than a tensor")
        if node.op != "call_module" and node.kwargs.get("out") is not None:
            raise UnsupportedError(f"{name_of(node)} writes to its out= tensor")
        first = node.args[0] if node.args else None
        same = True if node in writes else shares(node, modules)
        if isinstance(first, fx.Node) and same is not False:
            uncertain |= same is None
            near[node].append((first, same is None, order[node]))
            near[first].append((node, same is None, order[node]))
    if not uncertain:
        return
    for write, target in writes.items():
        if any(order[user] > order[write] for other in apart(target, near, order[write]) for user in other.users):
            raise UnsupportedError(WRITTEN)


def apart(target: fx.Node, near: dict[fx.Node, list[tuple[fx.Node, bool, int]]], before: int) -> list[fx.Node]:
    """The values that only sometimes lie in the memory of another one, made before some node."""
    found = {(target, False)}
    left = [(target, False)]
    while left:
        node, sometimes = left.pop()
        for other, step, place in near[node]:
            state = other, sometimes or step
            if place < before and state not in found:
                found.add(state)
                left.append(state)
    certain = {node for node, sometimes in found if not sometimes}
    return [node for node, sometimes in found if sometimes and node not in certain]
