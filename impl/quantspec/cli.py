"""The ``quantspec`` command: a thin reader of the functions of this package.

Bad input ends in one line on stderr and exit code 2, before anything is written.
"""

import argparse
import contextlib
import functools
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, NoReturn

import torch
from rich.console import Console
from rich.table import Table

import quantspec
from quantspec.backends.pytorch import quantized
from quantspec.errors import MissingExtraError, expected_one_of
from quantspec.extras import needed
from quantspec.progress import progress
from quantspec.torchvision_compat import import_torchvision
from quantspec.tutorial import data, few_bits, models, report, rows, shipped, tutorial, zoo
from quantspec.tutorial.families import registry


class Parser(argparse.ArgumentParser):
    """argparse, with its complaints in one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    about = "8-bit quantization of PyTorch models, with an executable specification."
    top = Parser(prog="quantspec", description=about)
    top.add_argument("--version", action="version", version=f"quantspec {quantspec.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, purpose: str) -> Parser:
        """A command, whose own help text begins with what the list of commands says about it."""
        return commands.add_parser(name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.")

    run = command("run", "tutorial: train a network, quantize it, measure it, compare it with torch")
    where = "folder with MNIST in torchvision's layout (default: $QUANTSPEC_DATA, ./data, download)"
    run.add_argument("--data", metavar="DIR", help=where)
    where = "folder for trained networks (default: $QUANTSPEC_CACHE, ~/.cache/quantspec)"
    run.add_argument("--cache", metavar="DIR", help=where)
    run.add_argument("--seed", type=int, default=0, help="seed of the training (default: 0)")
    variants = f"one of {', '.join(tutorial.VARIANTS)}; may be repeated"
    run.add_argument("--variant", action="append", metavar="NAME", help=variants)
    sizes = "batch size to time (default: 1 10 256); may be repeated"
    run.add_argument("--batch", action="append", type=int, metavar="N", help=sizes)
    run.add_argument("--reduce-range", action="store_true", help="use 7-bit activations, as torch does on x86")
    trains = "also train at 8, 4, 3 and 2 bits and compare trained with exported networks (minutes)"
    run.add_argument("--qat", action="store_true", help=trains)
    run.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    run.add_argument("--report", type=Path, metavar="FILE", help="write the results as one HTML page with pictures")
    run.set_defaults(function=run_tutorial)
    hold = command("conformance", "test backends for conformance; list each violated clause with a minimal call")
    backends = "a known backend or my_package.my_module:MyBackend; may be repeated (default: all installed)"
    hold.add_argument("--backend", action="append", metavar="NAME", help=backends)
    examples = "random calls for each clause and operation (default: 60)"
    hold.add_argument("--examples", type=int, default=60, metavar="N", help=examples)
    seconds = "time limit of one call in seconds (default: 20)"
    hold.add_argument("--seconds", type=float, default=20.0, metavar="S", help=seconds)
    hold.add_argument("--write", type=Path, metavar="DIR", help="write results and pages into a folder like spec/")
    hold.add_argument("--html", type=Path, metavar="FILE", help="write the matrix as one HTML page")
    recorded = "run no backend; write the pages from the recorded results"
    hold.add_argument("--recorded", action="store_true", help=recorded)
    hold.set_defaults(function=lambda options: conformance().conformance(options))
    purpose = "quantize public networks and compare them with float32 and torch.ao"
    nets = command("zoo", purpose)
    names = "one of the networks; may be repeated (default: all)"
    nets.add_argument("--model", action="append", metavar="NAME", help=names)
    families = f"networks of another library: {', '.join(registry.NAMES)}"
    nets.add_argument("--family", metavar="NAME", help=families)
    nets.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON")
    nets.set_defaults(function=show_zoo)
    probe = command("fingerprint", "determine the dialect (chapter 10) of a backend by test calls")
    probe.add_argument("backend", metavar="BACKEND", help="a known backend or my_package.my_module:MyBackend")
    probe.set_defaults(function=lambda options: conformance().show_fingerprint(options))
    return top


def conformance() -> ModuleType:
    """The commands that draw examples and read the chapters. Raises MissingExtraError where what they need is not
    installed."""
    for package in ("hypothesis", "markdown_it"):
        needed(package, "conformance", "this command")
    from quantspec.conformance import command

    return command


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for bad input."""
    try:
        options = parser().parse_args(arguments)
        return int(options.function(options))
    except (ValueError, TypeError, OSError, NotImplementedError, MissingExtraError) as error:
        print(f"quantspec: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def run_tutorial(options: argparse.Namespace) -> int:
    """``quantspec run``."""
    variants = options.variant or tutorial.VARIANTS
    batches = [1, 10, 256] if options.batch is None else options.batch
    tutorial.check(variants, batches)
    with output_file(options.json, "--json") as json_file, output_file(options.report, "--report") as report_file:
        dataset = data.load(options.data)
        console = Console()
        if dataset.note:
            console.print(dataset.note, highlight=False, soft_wrap=True, markup=False)
        model = models.trained(dataset, cache=options.cache, seed=options.seed)
        result = tutorial.run(model, dataset, variants=variants, batches=batches, reduce_range=options.reduce_range)
        show(result, console)
        training = few_bits.run(model, dataset) if options.qat else None
        if training is not None:
            show_training(training, console)
        if json_file:
            json.dump(result.as_json() | (training.as_json() if training else {}), json_file, indent=1)
        if report_file:
            report_file.write(report.page(model, result, training))
    return 0


def show_zoo(options: argparse.Namespace) -> int:
    """``quantspec zoo``: a row for each network, each measured in a process of its own. Raises ValueError for an
    unknown network."""
    if options.family is not None:
        return show_family(options)
    names = options.model or list(zoo.NAMES)
    if unknown := [name for name in names if name not in zoo.NAMES]:
        raise ValueError(expected_one_of("--model", zoo.NAMES, unknown[0]))
    import_torchvision()  # told here, once, and not by each process
    with output_file(options.json, "--json") as json_file:
        found = [row for _, row in zip(progress(names, "zoo"), zoo.rows(names), strict=True)]
        console = Console()
        console.print(zoo.table(found))
        say = functools.partial(console.print, highlight=False, soft_wrap=True, markup=False)
        for row in found:
            if row.same_sqnr is not None:
                both = f"torch.ao makes {row.peer_layers} of {row.layers} layers int8"
                say(f"{row.name}: {both}; quantspec with only these in int8: {row.same_sqnr:.1f} dB")
            if row.peer_reason:
                say(f"{row.name}: torch.ao fails: {row.peer_reason}")
            if row.onnx_reason:
                say(f"{row.name}: not exported to ONNX: {row.onnx_reason}")
            if row.onnx_same_floats:
                compared, differing = row.onnx_same_floats
                how = "with the same results of float operations (STA-RUNTIME)"
                say(f"{row.name}: ONNX Runtime {how}: {differing} of {compared:,} differ")
            if row.left:
                say(f"{row.name}: in float: {', '.join(f'{count} x {reason}' for reason, count in row.left.items())}")
        if json_file:
            json.dump(zoo.as_json(found), json_file, indent=1)
    return 0


def show_family(options: argparse.Namespace) -> int:
    """``quantspec zoo --family``. Raises ValueError for an unknown family or network, or a library that is missing."""
    networks = registry.networks(options.family)
    names = options.model or list(networks)
    if unknown := [name for name in names if name not in networks]:
        raise ValueError(expected_one_of("--model", networks, unknown[0]))
    with output_file(options.json, "--json") as json_file:
        how = registry.measuring(options.family)
        measured = rows.measured(functools.partial(how.row, options.family), names)
        found = [row for _, row in zip(progress(names, options.family), measured, strict=True)]
        console = Console()
        console.print(how.as_table(options.family, found))
        for line in how.notes(found):
            console.print(line, highlight=False, soft_wrap=True, markup=False)
        if json_file:
            json.dump(how.as_json(options.family, found), json_file, indent=1)
    return 0


@contextlib.contextmanager
def output_file(path: Path | None, option: str) -> Iterator[IO[str] | None]:
    """A text file that appears at ``path`` when everything went well, and not at all otherwise; None for no path.

    Raises OSError naming the option and the path before any work when the file could not be written.
    """
    if path is None:
        yield None
        return
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", text=True)
    except OSError as error:
        raise OSError(f"{option} {path}: cannot be written: {error.strerror or error}") from error
    try:
        with open(handle, "w", encoding="utf-8") as file:
            yield file
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def show(result: tutorial.Result, console: Console) -> None:
    """Prints the tables; each fits a terminal of 80 columns."""
    title = f"{result.dataset.name}: {len(result.dataset.x_test):,} test images, torch {torch.__version__}"
    table = Table(title=title, title_justify="left")
    table.add_column("variant", no_wrap=True)
    for column in ("accuracy", "change", "bytes", "compression"):
        table.add_column(column, justify="right", no_wrap=True)
    base = result.variants[0]
    for v in result.variants:
        change = "" if v is base else f"{100 * (v.accuracy - base.accuracy):+.2f} pp"
        table.add_row(v.name, f"{v.accuracy:.2%}", change, f"{v.bytes:,}", f"{v.compression:.2f}x")
    console.print(table)
    console.print()
    console.print(latency_table(result))
    how = "Medians of interleaved calls on one thread, each network on the default engine of its dialect."
    console.print(how, highlight=False)
    console.print()
    console.print(equality_table(result))
    for engine, names in result.dialects.items():
        console.print(f"  {engine}: dialect {' or '.join(names)}", highlight=False)
    wrong = [p for p in result.parameters if p.differ]
    numbers = sum(p.numbers for p in result.parameters)
    console.print("Scales, zero points, int8 weights, biases, quantized biases and input codes:")
    console.print(f"{numbers:,} numbers compared, ", end="")
    console.print(f"{sum(p.differ for p in wrong):,} differ.")
    for p in wrong:
        console.print(f"  {p.engine} {p.variant} {p.layer} {p.what}: {p.differ:,} of {p.numbers:,} differ")
    if any(name.endswith("-int16") for names in result.dialects.values() for name in names):
        console.print(
            "This CPU has no VNNI: some engines add products in pairs into saturating int16, "
            "which the dialects above include."
        )


def show_training(training: few_bits.Training, console: Console) -> None:
    """Prints what training at few bits gives, and what was trained beside what is shipped."""
    console.print()
    first = training.rows[0]
    table = Table(title=f"weights of few bits (float32: {first.float32:.2%})", title_justify="left")
    for column in ("bits", "calibrated", "trained", "change", "outputs: differ/compared"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in training.rows:
        change = f"{100 * (row.trained - row.float32):+.2f} pp"
        cells = f"{row.bits}", f"{row.calibrated:.2%}", f"{row.trained:.2%}", change
        table.add_row(*cells, f"{row.differ:,}/{row.compared:,}")
    console.print(table)
    console.print(few_bits.TOLD, highlight=False)
    console.print()
    table = Table(title="what was trained beside what is shipped: differ/compared", title_justify="left")
    for column in ("network", "bits", "dialect"):
        table.add_column(column, no_wrap=True)
    for column in ("all layers", "outputs", f"torch.ao {shipped.PEER}"):
        table.add_column(column, justify="right", no_wrap=True)
    for found in training.shipped:
        counts = f"{found.differ:,}/{found.values:,}", f"{found.outputs_differ:,}/{found.outputs:,}"
        peer = "-" if found.peer_differ is None else f"{found.peer_differ:,}/{found.peer_outputs:,}"
        table.add_row(found.network, str(found.bits), found.dialect, *counts, peer)
    console.print(table)
    console.print(shipped.TOLD, highlight=False)


def latency_table(result: tutorial.Result) -> Table:
    """Microseconds a call and speed-up against float32, a column for each batch size."""
    base = result.variants[0]
    table = Table(title="latency, µs a call (speed-up against float32)", title_justify="left")
    table.add_column("variant", no_wrap=True)
    for size in base.latency_us:
        table.add_column(f"batch {size}", justify="right")
    for v in result.variants:
        table.add_row(v.name, *(f"{us:,.0f} ({base.latency_us[size] / us:.2f}x)" for size, us in v.latency_us.items()))
    return table


def equality_table(result: tutorial.Result) -> Table:
    """Codes compared and codes that differ, a row for each engine and variant."""
    layers = list(dict.fromkeys(row.layer for row in result.equality))
    title = "our integer arithmetic beside torch's kernels: outputs that differ/compared"
    table = Table(title=title, title_justify="left")
    for column in ("engine", "variant"):
        table.add_column(column, no_wrap=True)
    for layer in layers:
        table.add_column(layer, justify="right")
    for engine in quantized.ENGINES:
        for variant in dict.fromkeys(row.variant for row in result.equality):
            rows = {row.layer: row for row in result.equality if (row.engine, row.variant) == (engine, variant)}
            cells = [
                f"not offered: {row.reason}" if row.reason else f"{row.differ:,}/{row.codes:,}"
                for row in (rows[name] for name in layers)
            ]
            table.add_row(engine, variant, *cells)
        table.add_section()
    return table
