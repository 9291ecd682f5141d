"""The process of the node: `python -m rvm_perception`, installed as `ros2 run rvm_perception rvm`."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading

_SHUTDOWN_TIMEOUT_S = 4.0
_SWITCH_INTERVAL_S = 1e-4
"""For so long at most the thread that received a frame keeps the one that steps it from beginning; Python's own value
is 5 ms."""


def main(argv: list[str] | None = None) -> int:
    """Runs the node until SIGINT or SIGTERM. Returns 0, or 1 where it cannot start."""
    stop = threading.Event()
    # First of all: a signal that comes while the imports below run must not end in a traceback either.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())

    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    import rclpy
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
    from rclpy.lifecycle import TransitionCallbackReturn
    from rclpy.signals import SignalHandlerOptions

    from rvm_perception.node import RVMNode
    from rvm_perception.parameters import ParameterError

    rclpy.init(args=argv, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = RVMNode()
    except ParameterError as error:
        rclpy.logging.get_logger("rvm").fatal(str(error))
        rclpy.shutdown()
        return 1
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    exit_code = 0

    def spin() -> None:
        nonlocal exit_code
        if node.get_parameter("autostart").value:
            started = node.trigger_configure() == TransitionCallbackReturn.SUCCESS
            if not (started and (stop.is_set() or node.trigger_activate() == TransitionCallbackReturn.SUCCESS)):
                exit_code = 1
                stop.set()
        while not stop.is_set():
            try:
                executor.spin_once(timeout_sec=0.2)
            except ExternalShutdownException:
                stop.set()
            except Exception as error:  # a fault in one callback must not end the node
                node.get_logger().error(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=spin, name="rvm_executor", daemon=True)
    thread.start()
    stop.wait()
    thread.join(timeout=_SHUTDOWN_TIMEOUT_S)
    if thread.is_alive():
        # Still loading weights or building an engine in native code, which nothing can interrupt.
        node.get_logger().warning("stopped while configuring")
        sys.stderr.flush()
        os._exit(exit_code)
    node.trigger_shutdown()
    if node.is_computing:
        os._exit(exit_code)
    executor.shutdown(timeout_sec=1.0)
    node.destroy_node()
    rclpy.shutdown()
    # All is in order. Taking the interpreter and torch apart would take seconds on a busy machine.
    atexit.register(_leave, exit_code)
    return exit_code


def _leave(exit_code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


if __name__ == "__main__":
    sys.exit(main())
