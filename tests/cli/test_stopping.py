"""Stops that get lost on the way, as they do in callbacks from C."""

import ctypes
import os
import signal
import sys
import time
import types
from collections.abc import Callable

import pytest

from localv4.cli.stopping import Stopped, check_timeout, stoppable
from localv4.errors import InvalidInput


def lose_a_stop(number: int | None, go_on: Callable[[], object]) -> None:
    """Let a signal's or a time limit's stop be raised in a callback from C, which drops it."""

    def callback() -> None:
        if number is not None:
            os.kill(os.getpid(), number)
        time.sleep(20)

    with stoppable(0.05 if number is None else None):
        ctypes.CFUNCTYPE(None)(callback)()
        go_on()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (None, 124)]
)
def test_a_stop_lost_in_a_callback_comes_again(capsys, number, code):
    hook = sys.unraisablehook
    began = time.monotonic()
    with pytest.raises(Stopped) as stopped:
        lose_a_stop(number, lambda: time.sleep(20))
    assert stopped.value.exit_code == code
    assert time.monotonic() - began < 10
    # Not a word of the one that was dropped.
    assert capsys.readouterr().err == ""
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert sys.unraisablehook is hook


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_waits_while_the_compiler_is_called_back(number):
    """Where a callback gives nothing, the code that it asked for is at no address."""
    given: list[int] = []

    def callback() -> None:
        os.kill(os.getpid(), number)
        given.append(1)

    compilers = {**globals(), "__name__": "llvmlite.binding.executionengine"}
    of_compiler = types.FunctionType(callback.__code__, compilers, closure=callback.__closure__)

    def block() -> None:
        with stoppable():
            ctypes.CFUNCTYPE(None)(of_compiler)()
            given.append(2)
            time.sleep(20)

    began = time.monotonic()
    with pytest.raises(Stopped):
        block()
    assert given == [1, 2]
    assert time.monotonic() - began < 10


def test_what_a_lost_stop_breaks_is_reported_as_the_stop():
    with pytest.raises(Stopped) as stopped:
        lose_a_stop(signal.SIGTERM, lambda: 1 / 0)
    assert stopped.value.exit_code == 143
    assert isinstance(stopped.value.__cause__, ZeroDivisionError)


def test_a_lost_stop_counts_even_if_the_block_ends():
    with pytest.raises(Stopped):
        lose_a_stop(None, lambda: None)


def test_tidying_up_is_not_stopped_again():
    tidied = []

    def work() -> None:
        with stoppable(0.05):
            try:
                time.sleep(20)
            finally:
                time.sleep(0.35)  # longer than it takes a lost stop to come again
                tidied.append(True)

    with pytest.raises(Stopped):
        work()
    assert tidied


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), stoppable(60):
        raise ZeroDivisionError
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.parametrize("timeout_s", [float("nan"), float("inf"), 0.0, -1.0, 1e10, 1e300])
def test_time_limits_that_no_timer_takes(timeout_s):
    with pytest.raises(InvalidInput, match="--timeout"):
        check_timeout(timeout_s)


def test_time_limits_that_a_timer_takes():
    check_timeout(None)
    check_timeout(1e9)
    with stoppable(1e9):
        pass
    check_timeout(1e-9)
    with pytest.raises(Stopped), stoppable(1e-9):
        time.sleep(20)
