"""What is counted, how costs add up, and what a pause leaves out."""

from __future__ import annotations

import time

import pytest

from trainers.meters import Meter, device_name
from trainers.phases import Cost


class Clock:
    """Stands in for ``time``: wall runs as told, CPU at three quarters of it."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now

    def process_time(self):
        return 0.75 * self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock.perf_counter)
    monkeypatch.setattr(time, "process_time", clock.process_time)
    return clock


def meter_at(clock):
    return Meter(_wall=clock.perf_counter(), _cpu=clock.process_time())


def test_passes_and_images_are_counted():
    meter = Meter()
    for images in (64, 64, 17):
        meter.forward(images)
    meter.backward()
    meter.hessian_vector_product()
    total = meter.total()
    assert (total.images, total.forward_passes) == (145, 3)
    assert (total.backward_passes, total.hvps) == (1, 1)


def test_cost_of_an_earlier_attempt_is_added():
    meter = Meter()
    meter.before = Cost(wall_s=100.0, device_s=200.0, images=5, forward_passes=2, hvps=3)
    meter.forward(10)
    total = meter.total()
    assert (total.images, total.forward_passes, total.hvps) == (15, 3, 3)
    assert total.wall_s >= 100.0
    assert total.device_s >= 200.0


def test_costs_add_field_by_field():
    one = Cost(wall_s=1.0, device_s=2.0, images=3, forward_passes=4, backward_passes=5, hvps=6)
    assert one + one == Cost(
        wall_s=2.0, device_s=4.0, images=6, forward_passes=8, backward_passes=10, hvps=12
    )


def test_time_is_wall_and_on_a_cpu_processor_time(clock):
    meter = meter_at(clock)
    clock.now += 8.0
    assert (meter.total().wall_s, meter.total().device_s) == (8.0, 6.0)


def test_time_does_not_run_while_paused(clock):
    meter = meter_at(clock)
    clock.now += 4.0
    with meter.paused():
        clock.now += 100.0
    clock.now += 4.0
    assert (meter.total().wall_s, meter.total().device_s) == (8.0, 6.0)


def test_a_pause_ends_with_an_error_inside(clock):
    meter = meter_at(clock)

    def fails():
        with meter.paused():
            clock.now += 100.0
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    clock.now += 8.0
    assert meter.total().wall_s == 8.0


def test_device_is_named_with_the_number_of_ranks():
    assert device_name("cpu") == "1 x cpu"
