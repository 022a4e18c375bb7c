"""When does a cluster's head count as lost?"""

from __future__ import annotations

from orchestrator.head_watch import HeadWatch


def test_a_silent_head_counts_as_lost_after_a_while_and_a_short_silence_does_not() -> None:
    now, up = [0.0], [True]
    watch = HeadWatch("10.0.0.1:6379", answers=lambda _: up[0], clock=lambda: now[0])

    def after(seconds: float) -> str:
        now[0] += seconds
        return watch.look()

    assert after(0) == ""
    up[0] = False
    assert after(3) == ""
    assert after(15) == ""
    up[0] = True
    assert after(3) == ""
    up[0] = False
    assert after(3) == ""
    assert after(19) == ""
    assert "10.0.0.1:6379" in after(3)


def test_a_head_watch_that_believes_everything_notices_nothing() -> None:
    """Negative control: it is the silence that counts, not the time."""
    now = [0.0]
    watch = HeadWatch("10.0.0.1:6379", answers=lambda _: True, clock=lambda: now[0])
    for _ in range(100):
        now[0] += 3.0
        assert watch.look() == ""
