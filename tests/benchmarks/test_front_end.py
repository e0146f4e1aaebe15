"""Tests that the benchmark of the front end's latency sends the described request."""

from benchmarks import front_end


def test_whole_and_streamed_answers_are_timed() -> None:
    figures = front_end.measure(rounds=1, requests=2)
    assert [row[:2] for row in figures.tables[0].rows] == [["whole", 2], ["streamed", 2]]
    assert all(0.0 < asked < answered for _, _, asked, answered in figures.tables[0].rows)
    assert figures.values["prompt_tokens"] > 1000
    assert len(front_end.messages()) == 20 and len(front_end.tools()) == 10
