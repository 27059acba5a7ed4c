"""What kernels are written with."""

from llvmlite import ir

from quantspec.kernels.emitter import I64, Emitter, function


def test_memory_of_a_function_is_taken_once():
    module = ir.Module()
    module.emitter = Emitter

    def write(emit, count):
        def body(i):
            emit.write(i, emit.stack(I64))
            emit.store(i, emit.alloca(I64, name="named"))

        emit.each(count, body)

    written = function(module, "quantspec_loop", 1, write)
    first, *others = written.blocks
    assert sum(each.opname == "alloca" for each in first.instructions) == 2
    assert others and not any(each.opname == "alloca" for block in others for each in block.instructions)


def test_bytes_of_one_name_are_once_in_the_code():
    module = ir.Module()
    module.emitter = Emitter

    def write(emit, count):
        first, second = (emit.constant("quantspec_table", b"ab", start) for start in (I64(0), count))
        emit.store(emit.load(first), second)

    function(module, "quantspec_copied", 1, write)
    assert list(module.globals).count("quantspec_table") == 1
