"""Points, boxes and masks followed from frame to frame by the features of a video.

`FeatureTracker` needs no training; see `base` for queries, tracks, coordinates and the contract of every tracker.
"""

from rvm_core.tracking.base import BoxQuery as BoxQuery
from rvm_core.tracking.base import BoxTracks as BoxTracks
from rvm_core.tracking.base import MaskQuery as MaskQuery
from rvm_core.tracking.base import MaskTracks as MaskTracks
from rvm_core.tracking.base import PointQuery as PointQuery
from rvm_core.tracking.base import PointTracks as PointTracks
from rvm_core.tracking.base import Query as Query
from rvm_core.tracking.base import QueryError as QueryError
from rvm_core.tracking.base import Status as Status
from rvm_core.tracking.base import Tracker as Tracker
from rvm_core.tracking.base import Tracks as Tracks
from rvm_core.tracking.create import create_tracker as create_tracker
from rvm_core.tracking.feature_tracker import FeatureTracker as FeatureTracker
from rvm_core.tracking.propagation import TrackingConfig as TrackingConfig
from rvm_core.tracking.propagation import propagate_labels as propagate_labels
