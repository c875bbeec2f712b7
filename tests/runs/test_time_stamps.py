"""Times between the time stamps of a run."""

from pipeline.runs.time_stamps import in_hours, seconds_between


def test_a_day_has_86400_seconds_and_a_damaged_stamp_none():
    assert seconds_between("2024-02-28 23:59:59", "2024-02-29 23:59:59") == 86400
    assert seconds_between("2024-02-29 00:00:01", "2024-02-29 00:00:00") is None
    assert seconds_between("yesterday", "2024-02-29 00:00:00") is None
    assert in_hours(100 * 3600 + 59) == "100:00:59"
