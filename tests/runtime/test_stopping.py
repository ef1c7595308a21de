"""SIGTERM and Ctrl-C between steps that they must not divide."""

from __future__ import annotations

import threading

import pytest

from fer_runtime.stopping import Terminated, undivided


def test_a_step_of_the_main_thread_is_finished_first() -> None:
    steps = []

    def step() -> None:
        with undivided:
            undivided.stop(Terminated)
            steps.append("finished")

    with pytest.raises(Terminated):
        step()
    assert steps == ["finished"]


def test_a_step_of_another_thread_does_not_take_the_main_threads_signal() -> None:
    is_inside, may_leave = threading.Event(), threading.Event()
    raised: list[BaseException] = []

    def step() -> None:
        try:
            with undivided:
                is_inside.set()
                may_leave.wait(60)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=step)
    thread.start()
    assert is_inside.wait(60)
    # As a handler does it, in the main thread.
    with pytest.raises(Terminated):
        undivided.stop(Terminated)
    may_leave.set()
    thread.join(60)
    assert raised == []
