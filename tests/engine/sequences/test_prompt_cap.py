"""How many prompt rows ride beside decoding sequences."""

from engine.sequences.scheduler import PromptCap
from engine.spec import TILE
from engine.timing import PassTimes


def cap_of(link_seconds: float, largest: int = 4096) -> PromptCap:
    """Passes of a model whose tile of 64 rows takes a second."""
    passes = PassTimes(granularity=64)
    passes.observe(64, 1.0, link_seconds)
    return PromptCap(passes, largest)


def observe(cap: PromptCap, seconds: float, *, prompt: bool, times: int = 1) -> None:
    for _ in range(times):
        cap.observe(seconds, with_prompt=prompt, decoding=True)


def test_as_many_prompt_rows_ride_as_the_link_hides() -> None:
    assert cap_of(link_seconds=10.0).rows(64) == 512  # 64 + 512 rows take 9 of 11.2 seconds
    assert cap_of(link_seconds=10.0, largest=256).rows(64) == 256
    assert cap_of(link_seconds=0.0).rows(64) == TILE


def test_fewer_rows_ride_behind_a_long_context() -> None:
    """Attention over it takes time that the rows themselves do not tell of."""
    passes = PassTimes(granularity=64, pair_seconds=1e-5)
    passes.observe(64, 1.0, 10.0)
    cap = PromptCap(passes, 4096)
    counts = [cap.rows(64, context) for context in (0, 1000, 3000, 8000)]
    assert counts == [512, 256, 128, 64]


def test_fewer_ride_after_a_pass_that_took_too_long_and_more_again_after_short_ones() -> None:
    cap = cap_of(link_seconds=10.0)
    observe(cap, 10.0, prompt=False)
    observe(cap, 13.0, prompt=True)
    assert cap.rows(64) == 256
    observe(cap, 13.0, prompt=True, times=9)
    assert cap.rows(64) == TILE
    observe(cap, 12.0, prompt=True, times=99)
    assert cap.rows(64) == 512


def test_the_cap_follows_passes_that_became_slower() -> None:
    cap = cap_of(link_seconds=1.0)
    assert cap.rows(64) == TILE
    observe(cap, 10.0, prompt=False)
    assert cap.rows(64) == 512


def test_nothing_is_concluded_from_prompts_alone_or_without_a_comparison() -> None:
    cap = cap_of(link_seconds=10.0)
    cap.observe(1000.0, with_prompt=True, decoding=True)
    observe(cap, 10.0, prompt=False)
    cap.observe(1000.0, with_prompt=True, decoding=False)
    assert cap.rows(64) == 512
