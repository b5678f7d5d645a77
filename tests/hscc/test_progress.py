"""One display for a whole job, and the seconds of its stages."""

from __future__ import annotations

import time

import pytest
from hscc import progress


def test_stages_of_a_job(capfd) -> None:
    """Work within work is a part of it; what is not the job's own has no share."""
    with progress.job({"one": 1, "two": 3}, show=True) as job:
        for _ in progress.track(range(4), "one", show=True):
            time.sleep(0.01)
        assert job.bar.tasks[0].completed == pytest.approx(1)
        with progress.job({"else": 5}, show=True) as inner:
            assert inner is job
            for part in ([0], [1, 2]):
                list(progress.track(part, "two", show=True, of=4))
        assert job.bar.tasks[0].completed == pytest.approx(1 + 3 * 3 / 4)
        assert list(progress.track((x for x in "ab"), "else", show=True)) == ["a", "b"]
    assert job.bar.finished
    assert job.seconds["one"] == pytest.approx(0.04, rel=0.9)
    assert set(job.seconds) == {"one", "two", "else"}
    out, errors = capfd.readouterr()
    assert out == ""
    assert "done" in errors


def test_nothing_is_printed_unless_asked_for(capfd) -> None:
    with progress.job({"one": 1}, show=False):
        assert list(progress.track(range(3), "one", show=False)) == [0, 1, 2]
    assert list(progress.track(range(3), "alone", show=False)) == [0, 1, 2]
    assert capfd.readouterr() == ("", "")
    assert list(progress.track(range(3), "alone", show=True)) == [0, 1, 2]
    assert "alone" in capfd.readouterr().err


def test_an_error_ends_the_display_and_the_next_job_begins_anew() -> None:
    def interrupted() -> None:
        with progress.job({"one": 1}, show=True):
            for _ in progress.track(range(3), "one", show=True):
                raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            interrupted()
