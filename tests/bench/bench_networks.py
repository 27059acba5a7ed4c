"""Rows of networks: ours and everybody else's, interleaved in one process."""

import pytest
import torch

import quantspec as qs
from bench import peers, rows, timing

ROWS = rows.rows()


@pytest.fixture(scope="module")
def made():
    """The last network's models: (network, ours, everybody's); rows of one network follow each other."""
    return {}


def models(made: dict, row: rows.Row) -> tuple:
    if made.get("network") != row.network:
        made.clear()
        model = row.build()
        ours = qs.quantize(model, peers.calibration(row)) if row.kind == rows.STATIC else qs.quantize_dynamic(model)
        made.update(network=row.network, all=(model, ours, peers.Models(row, model)))
    return made["all"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row(row, threads, bench, benchmark, made):
    torch.set_num_threads(threads)
    model, ours, others = models(made, row)
    batch = row.batch()
    with torch.inference_mode(), timing.without_collection():
        ran = others.peers(batch, threads, bench.compiles(row))
        timed = [timing.Timed(peer.name, peer.call, peer.before) for peer in ran]
        both = timing.Interleaved(timing.Timed("quantspec", lambda: ours(batch)), timed, bench.budget, timing.SETTLE if threads > 1 else 0.0)
        # The set-up before each of ours is a round of everybody else's.
        benchmark.pedantic(both.run, setup=both.peers, rounds=both.rounds, iterations=1)
    own, kinds = benchmark.stats.stats.median / both.count, {peer.name: peer.kind for peer in ran}
    work = rows.work(model, batch, ours.nbytes)
    ran_as = {"engine": ours.engine, "rounds": both.rounds}
    found = bench.row(row, threads, own, both.medians(), kinds, work, ran_as, (*peers.absent(), *others.unavailable))
    benchmark.extra_info.update(found)
