"""How long a thing took, as a person reads it."""

import pytest

from mmtrain.process.duration import duration


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.7, "1:00"), (61.0, "1:01"), (3671.0, "1:01:11")],
)
def test_duration_shows_minutes_and_hours_only_when_there_are_any(seconds, shown):
    assert duration(seconds) == shown
