"""Rows of the benchmark's table, and rounds in which the sides take turns."""

import pytest

from scripts.bench import measures
from scripts.bench.measures import Figure, Turns, compare, table


def test_table():
    rows = [
        compare("cold start", [3, 1, 2], [20, 10, 30], "s", goal=5),
        compare("peak memory", [2e6], [6e6], "MB", 1e6),
        Figure("same picture", 2, unit="/255", wanted=1),
    ]
    assert [row.verdict for row in rows] == ["met", "", "missed"]
    assert table(rows) == (
        "figure        ours  diffusers  measured  wanted\n"
        "cold start    2 s   20 s       10x       >= 5x     met\n"
        "peak memory   2 MB  6 MB       3x\n"
        "same picture                   2/255     <= 1/255  missed"
    )


def test_sides_take_turns_and_the_first_round_does_not_count(monkeypatch):
    monkeypatch.setattr(measures, "wait_until_idle", lambda: None)
    monkeypatch.setattr(measures, "busy_seconds", lambda: 0.0)
    seen = []
    sides = [lambda name=name: seen.append(name) or len(seen) for name in "ab"]
    turns = Turns()
    assert turns.take(sides, 2) == [[3, 5], [4, 6]]
    assert seen == ["a", "b"] * 3 and (turns.runs, turns.disturbed) == (4, 0)


@pytest.mark.parametrize(("busy", "disturbed"), [(0.05, 0), (0.5, 1)])
def test_runs_beside_busy_processes_are_repeated(monkeypatch, busy, disturbed):
    """The clock and the machine's work are made up: a run takes a second, in which others use `busy` cores."""
    clock, runs = [0.0], []
    monkeypatch.setattr(measures, "wait_until_idle", lambda: None)
    monkeypatch.setattr(measures.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(measures, "busy_seconds", lambda: busy * clock[0])
    monkeypatch.setattr(measures.os, "times", lambda: (0.0,) * 5)

    def side():
        clock[0] += 1
        runs.append(1)

    turns = Turns()
    turns.take([side], 1)
    assert turns.disturbed == disturbed and len(runs) == 1 + (measures.ATTEMPTS if disturbed else 1)
