"""Rows of networks: ours and everybody else's, interleaved in one process."""

import pytest
import torch

from bench import peers, rows, timing

ROWS = rows.rows()


@pytest.fixture(scope="module")
def latest():
    """The last network and its models, which are kept, as rows of one network follow each other."""
    return {}


def models(latest: dict, row: rows.Row) -> tuple:
    """(float, ours, everybody's) of the row's network."""
    if latest.get("network") != row.network:
        latest.clear()
        model = row.build()
        latest.update(network=row.network, models=(model, peers.quantized(row, model), peers.Models(row, model)))
    return latest["models"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row(row, threads, bench, benchmark, latest):
    torch.set_num_threads(threads)
    model, ours, others = models(latest, row)
    batch = row.batch()
    with torch.inference_mode(), timing.without_collection():
        runnable = others.peers(batch, threads, bench.compiles(row, threads))
        timed = [timing.Timed(peer.name, peer.call, peer.before) for peer in runnable]
        settle = timing.SETTLE if threads > 1 else 0.0
        both = timing.Interleaved(timing.Timed("quantspec", lambda: ours(batch)), timed, bench.budget, settle)
        # The set-up before each of ours is a round of everybody else's.
        benchmark.pedantic(both.run, setup=both.peers, rounds=both.rounds, iterations=1)
    own, kinds = benchmark.stats.stats.median / both.count, {peer.name: peer.kind for peer in runnable}
    work = rows.work(model, batch, ours.nbytes)
    run = {"engine": ours.engine, "rounds": both.rounds}
    absent = (*peers.absent(), *others.unavailable)
    benchmark.extra_info.update(bench.row(row, threads, own, both.medians(), kinds, work, run, absent))
