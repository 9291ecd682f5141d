"""A node that a command needs for itself: with a ROS context of its own, spun by a thread."""

from __future__ import annotations

import threading


class SpinningNode:
    """Its publishers and subscriptions are made on `node` before `start`; callbacks then come from another thread.

    Signals stay what they are in the process.
    """

    def __init__(self, name: str, domain: int) -> None:
        import rclpy
        from rclpy.context import Context
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.signals import SignalHandlerOptions

        self._context = Context()
        rclpy.init(args=[], context=self._context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node(name, context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._spin, name=name, daemon=True)

    def start(self) -> None:
        """Callbacks come from now on."""
        self._executor.add_node(self.node)
        self._thread.start()

    def stop(self) -> None:
        """No callback comes any more; nothing of the node is left."""
        self._done.set()
        self._thread.join(timeout=2.0)
        self._executor.shutdown(timeout_sec=1.0)
        self.node.destroy_node()
        self._context.try_shutdown()

    def _spin(self) -> None:
        from rclpy.executors import ExternalShutdownException

        try:
            while not self._done.is_set():
                self._executor.spin_once(timeout_sec=0.1)
        except ExternalShutdownException:
            pass
