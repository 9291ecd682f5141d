"""The ROS 2 side of RVM: the node, its messages, conversions and bag replay.

Importing this package needs neither ROS nor torch nor OpenCV; its modules import what they need.
"""

from pkgutil import extend_path

from .feature_map import feature_map_to_numpy

__all__ = ["feature_map_to_numpy"]

# The generated rvm_perception.msg is in the install space: lets a source checkout find it there.
__path__ = extend_path(__path__, __name__)
