"""A forged file for every check of the loader, each of which that check alone refuses."""

import json
from typing import Any

import safetensors.torch
import torch
from every_step import parts, place, resigned

INT8, FLOAT = torch.int8, torch.float32
REF = {"ref": "x"}


DELETE = object()


def tuple_of(*items: Any) -> dict[str, Any]:
    return {"tuple": list(items)}


def dict_of(**items: Any) -> dict[str, Any]:
    return {"dict": [[key, value] for key, value in items.items()]}


def grid(**changes: Any) -> dict[str, Any]:
    return {"qmin": 0, "qmax": 255, "axis": None, "scale": 0.5, "zero_point": 3} | changes


def step(name: str, kind: str, target: str, *args: Any, **more: Any) -> dict[str, Any]:
    row = {"step": "Call", "name": name, "kind": kind, "target": target, "args": tuple_of(*args), "reason": ""}
    return row | {"kwargs": dict_of()} | more


GIVEN = ("callables soft", {"kind": "module", "target": "soft", "given": "my.Softmax", "state": {}})
# Changes, each a path and what comes there ("+" appends; None deletes a tensor), and what the error says.
NETWORK: dict[str, tuple[list[tuple[str, Any]], str]] = {
    # the file as a whole
    "other format": ([("format", "quantize")], "no network of quantspec"),
    "version as text": ([("version", "3")], "version: expected int"),
    "newer": ([("version", 4)], "version 4 .* newer"),
    "older": ([("version", 0)], "version 0 .* older"),
    "checksum": ([("sha256", "0" * 64)], "checksum"),
    "key too many": ([("header code", "import os")], "header: expected the keys"),
    "report of another form": ([("report rows 0 1", "5")], "report: expected a path"),
    "negative work": ([("report rows 0 1", -1)], "report: expected a path"),
    "more work than 64 bits": ([("report rows 0 1", 2**63)], "report: expected a path"),
    "row that is none": ([("report rows 0", 5)], "report: expected list"),
    "report without rows": ([("report", {"counted": True})], "report: expected the keys"),
    "tensor of nothing": ([("tensor odd", torch.zeros(3))], "tensor 'odd' is not used"),
    "rows that are a number": ([("report rows", 5)], "report: expected list"),
    "counted by a number": ([("report counted", 1)], "report: expected bool"),
    "a list of a report's keys": ([("report", ["rows", "counted"])], "report: expected the keys"),
    "steps of version 1": ([("version", 1), ("header report", DELETE), ("steps", 3)], "steps: expected list"),
    "a network with more": ([("code", 1)], "network: expected the keys"),
    "steps that are a number": ([("steps", 3)], "steps: expected list"),
    "a dialect by number": ([("dialect", 3)], "dialect: expected str"),
    "more memory than is allowed": ([("steps conv padding", [[2**19, 2**19]] * 2)], "bytes of memory, .* max_memory"),
    # values of JSON
    "grids that are none": ([("grids", {})], "grids: expected list"),
    "a grid with more": ([("grids 0 more", 1)], "grid 0: expected the keys"),
    "an end by text": ([("grids 0 qmin", "0")], "grid 0: qmin: expected int"),
    "an axis by text": ([("grids 0 axis", "0")], "grid 0: axis: expected int"),
    "a scale that is whole": ([("grids 0 scale", 1)], "scale: expected float"),
    "a zero point between codes": ([("grids 0 zero_point", 0.5)], "grid 0: expected int"),
    "a stride that is a number": ([("steps conv stride", 1)], "stride: expected list"),
    "an argument beyond 64 bits": ([("steps move args tuple 1", 2**63)], "args: expected int"),
    "a value by number": ([("steps move args tuple 0", {"ref": 3})], "args: expected str"),
    "a pair that is none": ([("steps function kwargs dict 0", 3)], "kwargs: expected list"),
    "pairs that are none": ([("steps function kwargs", {"dict": 3})], "kwargs: expected list"),
    "a tuple that is a text": ([("steps item args", {"tuple": "ab"})], "args: expected list"),
    "a size that is a number": ([("steps item args tuple 1", {"size": 3})], "args: expected list"),
    "a size of texts": ([("steps item args tuple 1", {"size": ["3"]})], "args: expected int"),
    "a slice that is a number": ([("steps item args tuple 1", {"slice": 3})], "args: expected list"),
    "a constant by list": ([("steps item args tuple 1", {"dtype": []})], "unknown 'dtype'"),
    "a tensor by list": ([("steps conv bias", [])], r"there is no tensor \[\]"),
    "a step by list": ([("steps conv step", [])], r"unknown kind \[\]"),
    "no tensor": ([("tensor conv.bias", None)], "there is no tensor 'conv.bias'"),
    "a tensor's name as a number": ([("steps conv bias", 3)], "there is no tensor 3"),
    "float64 as codes": (
        [("tensor conv.bias", torch.ones(4, dtype=torch.float64))], "expected codes, float32 or int32"
    ),
    "a grid's axis": ([("grids 1 axis", None)], "along axis 0"),
    "scales of int32": ([("tensor conv.w_qparams.scale", torch.ones(4, dtype=torch.int32))], "along axis 0"),
    "zero points of float32": ([("tensor conv.w_qparams.zero_point", torch.zeros(4))], "along axis 0"),
    "a grid that is none": ([("grids 0 scale", -0.5)], "grid 0: "),
    "a scale that is no float32": ([("grids 0 scale", 0.1)], "scale: expected a float32"),
    "a scale beyond float32": ([("grids 0 scale", 2.0**200)], "scale: expected a float32"),
    "a zero point that is no code": ([("grids 0 zero_point", 2**40)], "zero_point: expected a code"),
    "a grid that is not there": ([("steps q qparams", 9)], "there is no grid 9"),
    "a grid before the first": ([("steps q qparams", -1)], "there is no grid -1"),
    "a grid by name": ([("steps q qparams", "0")], "there is no grid '0'"),
    "a pair of three": ([("steps conv padding 0", [1, 1, 1])], "expected 2 entries, got 3"),
    "arguments that are a list": ([("steps abs args", [REF])], "expected tuple"),
    "defaults by number": ([("defaults", {"dict": [[1, None]]})], "expected names and values"),
    "an object of two keys": ([("output", {"ref": "rnn", "tuple": []})], "an object with one key"),
    "an object in place of a list": ([("output", {})], "an object with one key"),
    "pairs of three": ([("steps function kwargs dict 0", ["alpha", 2.0, 1])], "pairs of different keys"),
    "a key twice": ([("steps function kwargs dict +", ["alpha", 1.0])], "pairs of different keys"),
    "a complex number that is a number": ([("steps item args tuple 1", {"complex": 3})], "args: expected list"),
    "a complex number of three": (
        [("steps item args tuple 1", {"complex": [0.5, 1.5, 2.5]})], "a complex number has two floats",
    ),
    "a complex number of whole numbers": (
        [("steps item args tuple 1", {"complex": [0.5, 1]})], "a complex number has two floats",
    ),
    "a slice of two": ([("steps item args tuple 1", {"slice": [0, 1]})], "a slice has three entries"),
    "an unknown constant": ([("steps item args tuple 1", {"dtype": "int7"})], "unknown 'dtype'"),
    "a constant by number": ([("steps item args tuple 1", {"dtype": 7})], "unknown 'dtype'"),
    "a constant of an unknown kind": ([("steps item args tuple 1", {"eval": "1"})], "unknown 'eval'"),
    "a number as a text": ([("steps conv groups", "1")], "groups: expected int"),
    "a number beyond 64 bits": ([("steps conv groups", 2**63)], "groups: expected int"),
    "a field too many": ([("steps conv more", 1)], "expected the keys"),
    # steps
    "attention that drops": (
        [("steps attended kwargs", dict_of(dropout_p=0.5))], "'attended': .* is no attention that is computed in codes",
    ),
    "unknown step": ([("steps conv step", "Evaluate")], "unknown kind 'Evaluate'"),
    "step of no kind": ([("steps conv step", 3)], "unknown kind 3"),
    "unknown dialect": ([("dialect", "tosa")], "unknown dialect 'tosa'"),
    "an input twice": ([("inputs", ["x", "w", "w"])], "inputs: expected different names"),
    "a default of no input": ([("defaults", dict_of(y=None))], "inputs: expected different names"),
    "a fixed argument that is an input": ([("fixed", dict_of(x=None))], "fixed: 'x' is an input"),
    "a fixed argument by number": ([("fixed", {"dict": [[1, None]]})], "fixed: expected names and values"),
    "a fixed argument that reads": ([("fixed", dict_of(n=REF))], "a constant refers to 'x'"),
    "a default that reads": ([("defaults", dict_of(w=REF))], "a constant refers to 'x'"),
    "a name that is taken": ([("steps max name", "conv")], "the name is taken"),
    "no name": ([("steps bag name", ""), ("output tuple 1", {"ref": ""})], "the name is taken"),
    "a step of what is later": ([("steps q x", "linear")], "'linear', which no earlier step makes"),
    "codes as floats": ([("steps words x", "q")], "reads codes, 'q', as floats"),
    "floats as codes": ([("steps max x", "x")], "reads floats, 'x', as codes"),
    "another grid": ([("grids +", grid(scale=0.25)), ("steps relu qparams", 4)], "on another grid than it is"),
    "signed codes of activations": (
        [("grids +", grid(qmin=-128, qmax=127)), ("steps linear y_qparams", 4)], "codes from 0 on for activations"
    ),
    "activations by channel": (
        [("grids +", grid(axis=0, scale="tensor", zero_point="tensor2")), ("tensor tensor", torch.ones(4)),
         ("tensor tensor2", torch.zeros(4, dtype=torch.int32)), ("steps linear y_qparams", 4)],
        "one scale and codes from 0 on",
    ),
    "a sum in float": ([("output tuple 0", {"ref": "q"})], "output: 'q' is not a float value"),
    "an output that nothing makes": ([("output tuple 0", {"ref": "nobody"})], "output: 'nobody' is not a float value"),
    "called, and not there": (
        [("callables +", {"kind": "function", "target": "torch.sub"})], "is called but not defined"
    ),
    # weights
    "float weights": ([("tensor linear.weight", torch.ones(3, 8))], "expected int8 weights"),
    "weights of three axes": ([("tensor linear.weight", torch.ones(3, 8, 1, dtype=INT8))], "expected int8 weights"),
    "a zero point of weights": ([("grids 2 zero_point", 1)], "and zero point 0"),
    "codes of weights from 0 on": ([("steps linear w_qparams", 0), ("grids 0 zero_point", 0)], "and zero point 0"),
    "a scale of another channel": ([("steps linear w_qparams", 1)], "for each of 3 outputs"),
    "weights above their grid": (
        [("tensor linear.weight", torch.full((3, 8), 8, dtype=INT8))], "weights beyond -8 to 7"
    ),
    "weights below their grid": (
        [("tensor linear.weight", torch.full((3, 8), -9, dtype=INT8))], "weights beyond -8 to 7"
    ),
    "a bias of codes": ([("tensor linear.bias", torch.ones(3, dtype=INT8))], "expected a float32 bias"),
    "a bias of another length": ([("tensor linear.bias", torch.ones(2))], "expected a float32 bias of shape"),
    "a bias of NaN": ([("tensor linear.bias", torch.full((3,), torch.nan))], "without NaN"),
    "an accumulator that overflows": (
        [("tensor linear.weight", torch.full((3, 2**18), 7, dtype=INT8)), ("grids 2 scale", 2.0**-20),
         ("tensor linear.bias", torch.full((3,), 2.0**20))], "beyond int32",
    ),
    "a stride of one axis": ([("steps conv stride", [1])], "one place for each"),
    "a stride of 0": ([("steps conv stride", [0, 1])], "strides, dilations and kernels from 1 on"),
    "groups that do not divide": ([("steps conv groups", 3)], "groups that divide 4 outputs"),
    "a stride beyond": ([("steps conv stride", [2**21, 1])], r"a place beyond 2\^20"),
    # other steps
    "a table of int8": ([("tensor table.table", torch.zeros(256, dtype=INT8))], "a table of 256 codes"),
    "a table of 255": ([("tensor table.table", torch.zeros(255, dtype=torch.uint8))], "a table of 256 codes"),
    "an interpolation to nothing": ([("steps between size", None)], "one of like, size and factors"),
    "an interpolation to two lengths": ([("steps factors like", "avg")], "one of like, size and factors"),
    "an interpolation by no factor": ([("steps between exact", True)], "one of like, size and factors"),
    "an interpolation to no positions": ([("steps between size", [0, 2])], r"lengths or factors of at most 2\^20"),
    "an interpolation by too much": ([("steps factors factors", [2.0**21, 1.0])], r"lengths or factors of at most"),
    "an interpolation like floats": ([("steps like like", "x")], "which is no codes"),
    "tables of no channel": (
        [("tensor slopes.table", torch.zeros((0, 256), dtype=torch.uint8))], "a table of 256 codes",
    ),
    "tables of channels and places": (
        [("tensor slopes.table", torch.zeros((4, 1, 256), dtype=torch.uint8))], "a table of 256 codes",
    ),
    "a table below its grid": (
        [("grids +", grid(qmin=1)), ("steps table y_qparams", 4), ("steps relu qparams", 4),
         ("steps add b_qparams", 4), ("steps add a_qparams", 4), ("steps mul b_qparams", 4)], "codes from 1 to 255",
    ),
    "a table above its grid": (
        [("grids +", grid(qmax=100)), ("steps table y_qparams", 4), ("steps relu qparams", 4),
         ("steps add b_qparams", 4), ("steps add a_qparams", 4), ("steps mul b_qparams", 4)], "codes from 0 to 100",
    ),
    "nothing joined": ([("steps cat xs", []), ("steps cat x_qparams", [])], "a grid for each of 0 values"),
    "joined on one grid": ([("steps cat x_qparams", [0])], "a grid for each of 2 values"),
    "a window of four axes": (
        [(f"steps max {key}", [1] * 4) for key in ("kernel", "stride", "dilation")] + [("steps max padding", [0] * 4)],
        "for one to three axes",
    ),
    "a window of two lengths": ([("steps max stride", [1])], "for one to three axes"),
    "a window of 0": ([("steps max stride", [0, 1])], "for one to three axes"),
    "a window beyond": ([("steps max stride", [2**21, 1])], "for one to three axes"),
    "a padding beyond its window": ([("steps max padding", [2, 0])], "at most half of a kernel"),
    "a negative padding": ([("steps max padding", [-1, 0])], "at most half of a kernel"),
    "sizes of four axes": ([("steps ada size", [1] * 4)], "expected one to three sizes"),
    "a size of 0": ([("steps ada size", [0, 1])], "expected one to three sizes"),
    "a mean of nothing": ([("steps mean axes", [])], "expected different axes"),
    "a mean of one axis twice": ([("steps mean axes", [2, 2])], "expected different axes"),
    "a mean of the hundredth axis": ([("steps mean axes", [2, 99])], "expected different axes"),
    "what moves no codes": ([("steps move target", "abs")], "'abs' does not move codes"),
    "a move of a number": ([("steps move args", tuple_of(1, 1))], "expected a value to move"),
    "a move of nothing": ([("steps move args", tuple_of())], "expected a value to move"),
    "codes quantized again": ([("steps bag name", "bag"), ("steps deq step", "Quantize")], "quantizes codes, 'mul'"),
    "an unknown bag": ([("steps bag bag", "median")], "a bag of sum, mean or max"),
    "padding beyond a table": ([("steps words padding_idx", 5)], "padding below 5"),
    "padding before a table": ([("steps words padding_idx", -1)], "padding below 5"),
    "weights of no bag": ([("steps words weights", "w")], "offsets and weights belong to bags"),
    "offsets of no bag": ([("steps words offsets", "w")], "offsets and weights belong to bags"),
    "an end of no bag": ([("steps words include_last_offset", True)], "offsets and weights belong to bags"),
    "an unknown cell": ([("steps rnn kind", "sru")], "cells for each layer of an lstm, gru or rnn"),
    "no cells": ([("steps rnn cells", [])], "2 cells for each layer"),
    "cells of half a layer": ([("steps rnn cells +", "first")], "2 cells for each layer"),
    "one step of two cells": ([("steps rnn single", True)], "2 cells for each layer"),
    "a cell of another size": ([("steps rnn kind", "gru")], r"expected a weight of shape \(6, 4\)"),
    "a state of another size": (
        [("tensor rnn.cells.1.state_weight", torch.zeros(8, 3, dtype=INT8))], r"expected a weight of shape \(8, 2\)"
    ),
    "a sum on no grid": ([("steps relu qparams", 1)], "one scale and codes from 0 on"),
    "a table on another grid": ([("grids +", grid(scale=0.25)), ("steps table x_qparams", 4)], "on another grid"),
    "a sum on another grid": ([("grids +", grid(scale=0.25)), ("steps add a_qparams", 4)], "on another grid"),
    "a sum with another grid": ([("grids +", grid(scale=0.25)), ("steps add b_qparams", 4)], "on another grid"),
    "joined on another grid": ([("grids +", grid(scale=0.25)), ("steps cat x_qparams 1", 4)], "on another grid"),
    "floats of another grid": ([("grids +", grid(scale=0.25)), ("steps deq qparams", 4)], "on another grid"),
    "a dynamic layer of floats": ([("tensor dynamic.weight", torch.ones(3, 4))], "expected int8 weights"),
    "words of floats": ([("tensor words.weight", torch.ones(5, 4))], "expected int8 weights"),
    "a cell of floats": ([("tensor rnn.cells.0.state_weight", torch.ones(8, 2))], "expected int8 weights"),
    # what is called
    "callables by number": ([("callables", 3)], "callables: expected list"),
    "a callable by number": ([("callables norm target", 3)], "callables: target: expected str"),
    "a function with more": ([("callables torch.add code", "1")], "torch.add: expected the keys"),
    "a constant with more": ([("callables k code", "1")], "k: expected the keys"),
    "a class with more": ([("callables soft code", "1")], "soft': expected the keys"),
    "a class by list": ([("callables soft class", [])], "may not name the class"),
    "arguments with more": ([("callables soft arguments dict +", ["code", "1"])], "soft': expected the keys"),
    "a layer with more": ([("callables float code", "1")], "float': expected the keys"),
    "outputs with more": (
        [("callables +", {"kind": "function", "target": "os.stat_result", "output": True, "code": 1})],
        "os.stat_result: expected the keys",
    ),
    "a given module with more": (
        [("callables soft", {"kind": "module", "target": "soft", "given": "my.Softmax", "state": {}, "code": 1})],
        "soft': expected the keys",
    ),
    "a given module by number": (
        [("callables soft", {"kind": "module", "target": "soft", "given": 3, "state": {}})], "soft': expected str"
    ),
    "a function that nothing has": (
        [("steps function target", "torch.nothing")], "may not name the function 'torch.nothing'"
    ),
    "a float convolution without positions": (
        [("callables float layer", "Conv"), ("callables float fields",
          {"name": "float", "x": "soft", "layer": "float", "relu": False, "ceiling": 1.0, "groups": 1,
           "transposed": False}
          | dict.fromkeys(("stride", "padding", "dilation", "input_dilation"), []))], "one to three axes of positions",
    ),
    "a function that is not listed": ([("steps item target", "os.system"), ("callables operator.getitem target",
        "os.system")], "may not name the function 'os.system'"),  # fmt: skip
    "a method that is not listed": ([("steps abs target", "tofile")], "may not name the method 'tofile'"),
    "a method of a number": ([("steps abs args", tuple_of(1))], "a method belongs to a value"),
    "a method of nothing": ([("steps abs args", tuple_of())], "a method belongs to a value"),
    "an attribute that is not listed": ([("steps shape args tuple 1", "__class__")], "may not name the attribute"),
    "an unknown kind of call": ([("steps abs kind", "code")], "expected a module, a function, a method"),
    "arguments by number": ([("steps function kwargs", {"dict": [[1, 2.0]]})], "expected names and values"),
    "a callable twice": ([("callables +", {"kind": "function", "target": "torch.add"})], "occurs twice"),
    "a callable of an unknown kind": ([("callables +", {"kind": "code", "target": "x"})], "unknown kind 'code'"),
    "a constant that reads": ([("callables k value", REF), ("tensor k", None)], "attribute 'k' refers to 'x'"),
    "a module without state": ([("callables soft state", None)], "expected its state"),
    "an unknown class": ([("callables soft class", "Module")], "may not name the class 'Module'"),
    "a class by number": ([("callables soft class", 3)], "may not name the class 3"),
    "an argument that a class does not take": (
        [("callables norm arguments", dict_of(normalized_shape="3", eps=1e-5, elementwise_affine=True, bias=True))],
        "LayerNorm does not take",
    ),
    "layers without tensors": (
        [("callables soft class", "LSTM"), ("callables soft arguments", dict_of(input_size=1, hidden_size=1,
            num_layers=200, bias=True, batch_first=False, dropout=0.0, bidirectional=False, proj_size=0))],
        "200 layers with 0 tensors",
    ),  # fmt: skip
    "state of another name": ([("callables soft state", {"gain": "k"})], "'gain' is in only one of"),
    "state of another shape": ([("tensor norm.weight", torch.ones(4))], "expected 'weight' as"),
    "state of another type": ([("tensor norm.weight", torch.ones(3).double())], "expected 'weight' as"),
    "state that is not stored": (
        [("callables soft class", "Embedding"), ("callables soft arguments", dict_of(num_embeddings=1, embedding_dim=1,
            padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, sparse=False))],
        "'weight' is in only one of",
    ),  # fmt: skip
    "a layer of an unknown kind": ([("callables float layer", "Program")], "expected a layer with a float32 weight"),
    "a layer without a weight": (
        [("callables float state", {"bias": "float.bias"}), ("tensor float.weight", None)],
        "a layer with a float32 weight",
    ),
    "a layer of float64": ([("tensor float.weight", torch.ones(2, 3).double())], "a layer with a float32 weight"),
    "a float bias of another length": ([("tensor float.bias", torch.ones(5))], "expected a bias of shape"),
    "a float weight of three axes": (
        [("tensor float.weight", torch.ones(2, 3, 1))], r"expected a weight \[outputs, inputs\]"
    ),
    "a module that is given": (
        [GIVEN],
        "modules: 'soft' is a my.Softmax",
    ),
    "a class of outputs": (
        [("callables +", {"kind": "function", "target": "os.stat_result", "output": True})],
        "model: the file names os.stat_result",
    ),
}  # fmt: skip


# The same for a file of a model of several parts.
MODEL: dict[str, tuple[list[tuple[str, Any]], str]] = {
    "a class by number": ([("model class", 3)], "class: expected str"),
    "modules by number": ([("model modules", 3)], "modules: expected list"),
    "a module by number": ([("model modules 0", 3)], "modules: expected list"),
    "stops by number": ([("model stops", 3)], "stops: expected list"),
    "a stop by number": ([("model stops +", 3)], "stops: expected list"),
    "parts by number": ([("model parts", 3)], "parts: expected list"),
    "a part with more": ([("model parts 0 more", 3)], "part 0: expected the keys"),
    "a network with more": ([("model parts 0 network more", 3)], "part 0: expected the keys"),
    "a path by number": ([("model parts 0 path", 3)], "part 0: expected str"),
    "state by number": ([("model state", 3)], "state: expected dict"),
    "codes by number": ([("model coded", 3)], "coded: expected dict"),
    "a way with more": ([("model parts 0 way more", 3)], "part 0: expected the keys"),
    "constants by number": ([("model parts 0 way constants", 3)], "part 0: expected list"),
    "names by number": ([("model parts 0 way names", 3)], "part 0: expected list"),
    "a name by number": ([("model parts 0 way names 0", 3)], "part 0: expected str"),
    "a shape by number": ([("model parts 0 way shape", 3)], "part 0: expected str"),
    "a constant by number": ([("model parts 0 way constants 0", 3)], "part 0: expected list"),
    "a name twice": (
        [("model parts 0 way names +", "first"), ("model parts 0 way constants +", "tensor")], "a name for each tensor"
    ),
    "a constant of three": ([("model parts 0 way constants +", ["int", 2, 3])], "expected a kind of constant"),
    "codes with more": ([("model coded embed.weight more", 3)], "coded embed.weight: expected the keys"),
    "a form by number": ([("model coded embed.weight form", 3)], "coded embed.weight: expected str"),
    "groups by text": ([("model coded embed.weight groups", "1")], "coded embed.weight: expected int"),
    "no groups": ([("model coded embed.weight groups", 0)], "in 0 groups"),
    "groups that do not divide": ([("model coded embed.weight groups", 3)], "in 3 groups"),
    "codes of one axis": (
        [("tensor odd", torch.zeros(10, dtype=INT8)), ("model coded embed.weight codes", "odd")], "expected int8 codes"
    ),
    "codes of uint8": (
        [("tensor odd", torch.zeros(10, 8, dtype=torch.uint8)), ("model coded embed.weight codes", "odd")],
        "expected int8 codes",
    ),
    "a scale of codes": (
        [("tensor odd", torch.zeros(10, dtype=INT8)), ("model coded embed.weight scale", "odd")], "a float32 scale"
    ),
    "codes turned": (
        [("tensor odd", torch.zeros(10, 8, 1, dtype=INT8)), ("model coded embed.weight codes", "odd"),
         ("model coded embed.weight form", "transposed")], "unknown form 'transposed'",
    ),
    "another module": ([("model modules 1 1", "Linear")], "model: expected embed as a Linear"),
    "a module less": ([("model modules 4", DELETE)], "model: expected 4 modules"),
    "a module more": ([("model modules +", ["x", "Linear", 0])], "model: expected 6 modules"),
    "another shape": ([("tensor gain", torch.zeros(9))], "model: 'gain' is"),
    "an attribute of no module": (
        [("tensor odd", torch.zeros(9)), ("model attributes nowhere.x", "odd")], "'nowhere.x' is not an attribute"
    ),
    "an attribute that is no name": (
        [("tensor odd", torch.zeros(9)), ("model attributes norm.a-b", "odd")], "'norm.a-b' is not an attribute"
    ),
    "an attribute of torch's": (
        [("tensor odd", torch.zeros(9)), ("model attributes norm._modules", "odd")],
        "'norm._modules' is not an attribute",
    ),
}  # fmt: skip


def forged(name: str) -> bytes:
    """The file of that name of one network."""
    return changed(*parts(), NETWORK[name][0])


def changed(header: dict[str, Any], tensors: dict[str, torch.Tensor], changes: list[tuple[str, Any]]) -> bytes:
    """A file with changes and, unless the change is the checksum, the checksum that belongs to it."""
    for path, value in changes:
        if path.startswith("tensor "):
            key = path.removeprefix("tensor ")
            if value is None:
                del tensors[key]
            else:
                tensors[key] = value
            continue
        holder, key = place(header, path)
        if value is DELETE:
            del holder[key]
        elif key == "+":
            holder.append(holder[0] if value == "first" else value)
        else:
            holder[key] = value
    if any(path == "sha256" for path, _ in changes):
        return safetensors.torch.save(tensors, {"quantspec": json.dumps(header)})
    return resigned(header, tensors)


def raw(header: bytes, body: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + body


def tensors_only(**rows: Any) -> bytes:
    return json.dumps({"__metadata__": {"quantspec": "{}"}} | rows).encode()


ROW = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}
# Bytes that are no file of ours, each refused by one check.
RAW: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no header of a .safetensors"),
    "a length of 0": (bytes(8), "no header of a .safetensors"),
    "a length beyond the file": (raw(b"{}")[:-1], "no header of a .safetensors"),
    "a header that is a list": (raw(b"[]"), "its header is not a JSON object"),
    "a key twice": (raw(b'{"a": 1, "a": 2}'), "a key occurs twice"),
    "a tensor of no type": (raw(tensors_only(a=ROW | {"dtype": "X9"}), b"ab"), "type, shape and place of a tensor"),
    "a tensor with more": (raw(tensors_only(a=ROW | {"more": 1}), b"ab"), "type, shape and place of a tensor"),
    "a tensor that is none": (raw(tensors_only(a=3), b"ab"), "type, shape and place of a tensor"),
    "a tensor of texts": (raw(tensors_only(a=ROW | {"shape": ["2"]}), b"ab"), "type, shape and place of a tensor"),
    "a negative shape": (raw(tensors_only(a=ROW | {"shape": [-1, -2]}), b"ab"), "type, shape and place of a tensor"),
    "a gap": (raw(tensors_only(a=ROW | {"data_offsets": [1, 3]}), b"abc"), "tensor 'a' has offsets"),
    "another length": (raw(tensors_only(a=ROW | {"shape": [3]}), b"ab"), "tensor 'a' has offsets"),
    "a tensor beyond the file": (raw(tensors_only(a=ROW), b"a"), "tensor 'a' has offsets"),
    "more than it says": (raw(tensors_only(a=ROW), b"abc"), "does not describe all of its bytes"),
    "no metadata": (raw(b'{"__metadata__": []}'), "no network of quantspec"),
    "metadata of others": (raw(b'{"__metadata__": {"format": "pt"}}'), "no network of quantspec"),
    "metadata that is a list": (raw(b'{"__metadata__": [1]}'), "no network of quantspec"),
    "NaN": (raw(b'{"__metadata__": {"quantspec": "{\\"a\\": NaN}"}}'), "NaN is not a JSON number"),
    "a list of networks": (raw(b'{"__metadata__": {"quantspec": "[]"}}'), "no network of quantspec"),
}
