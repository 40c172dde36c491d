"""What hosts, and whoever writes an adapter or a backplane, test with; no test framework needed.

The suites are `jobqueue_broadcast.testing.adapters` and `jobqueue_broadcast.testing.backplanes`.
"""

from jobqueue_broadcast.testing.doubles import (
    BrokenConnection,
    HandLoop,
    ManualClock,
    RecordingConnection,
    SlowConnection,
)

__all__ = ["BrokenConnection", "HandLoop", "ManualClock", "RecordingConnection", "SlowConnection"]
