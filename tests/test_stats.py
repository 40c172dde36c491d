import json

import pytest
from msgspec import json as msgspec_json
from msgspec import structs

from jobqueue_broadcast import EventBroadcaster
from jobqueue_broadcast.stats import BroadcasterStats
from jobqueue_broadcast.testing import ManualClock


def test_every_figure_is_a_whole_number_and_begins_at_zero() -> None:
    stats = EventBroadcaster(clock=ManualClock()).stats()
    figures = structs.asdict(stats)
    assert set(figures) == set(BroadcasterStats.__struct_fields__)
    assert all(type(figure) is int and figure == 0 for figure in figures.values())


def test_figures_can_be_written_as_json() -> None:
    stats = EventBroadcaster(clock=ManualClock()).stats()
    assert json.loads(msgspec_json.encode(stats)) == structs.asdict(stats)


def test_figures_cannot_be_changed() -> None:
    stats = EventBroadcaster(clock=ManualClock()).stats()
    with pytest.raises(AttributeError):
        stats.monitors = 1  # type: ignore[misc]
