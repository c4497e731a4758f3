"""The load test of the gateway, short: what it counts, and that the gateway holds."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gateway_load  # noqa: E402
import page  # noqa: E402

LOAD = {
    "compressor": "0123456789ab",
    "clients": 32,
    "seconds": 120.0,
    "answers": 1200,
    "vanished": 300,
    "statuses": {"200": 1500},
    "errors": 0,
    "failures": [],
    "answer_median": 1.0,
    "answer_99": 2.0,
    "first_part_median": 0.5,
    "alone_before": 0.1,
    "alone_after": 0.1,
    "idle_after": 0.01,
    "resident_before": 100 << 20,
    "resident_after": 104 << 20,
    "growth": 0.04,
    "overrun": {
        "asked": 84,
        "room": 68,
        "statuses": {"200": 68, "429": 16},
        "refused_with_retry_after": 16,
    },
    "prefixes": {"hits_total": 990.0, "misses_total": 8.0, "bytes": float(3 << 20)},
}


def test_the_bars_tell_a_leak_an_error_and_an_open_queue():
    assert all(page.met(bar) for bar in gateway_load.bars({"load": LOAD}))
    over = {"asked": 84, "room": 68, "statuses": {"200": 84}, "refused_with_retry_after": 0}
    for worse in ({"growth": 0.06}, {"errors": 1}, {"overrun": over}):
        missed = [
            bar for bar in gateway_load.bars({"load": {**LOAD, **worse}}) if not page.met(bar)
        ]
        assert len(missed) == 1


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is Linux's")
def test_the_gateway_holds_under_ten_seconds_of_load():
    # Room for twice the clients: one that left comes back before a busy gateway has noticed.
    load = gateway_load.run(clients=8, seconds=10.0, running=2, waiting=14)
    assert load["failures"] == []
    assert set(load["statuses"]) == {"200"}
    assert load["vanished"] > 2
    assert load["prefixes"]["misses_total"] == 8  # one for each stored memory
    assert load["prefixes"]["hits_total"] > 8
    assert load["growth"] < gateway_load.GROWTH
    assert load["overrun"]["statuses"] == {"200": 16, "429": gateway_load.BEYOND}
    assert load["overrun"]["refused_with_retry_after"] == gateway_load.BEYOND
