"""What a replica reports of itself, from what its engine shows."""

from cluster.held_pages import HeldPages
from cluster.report import Figures, Load
from cluster.served_model import ServedModel
from cluster.wire import Report
from engine.messages import ModelInfo
from engine.process.interface import Engine
from engine.timing import StepTimes

FEW_ROWS, MANY_ROWS = 64, 2048  # of passes, between which the time of a row is taken
NO_FIGURES = Figures()
PASSES_PER_ANSWER = 20  # assumed, until a running sequence gives its place to another one


def load_of_engine(
    engine: Engine, info: ModelInfo, times: StepTimes, free_pages: int | None
) -> Load:
    """Return the work that an engine has, and its speed as far as passes have shown it.

    Args:
        times: the seconds of its passes, with their drafts, by their rows.
        free_pages: of the latest pass; None before the first one.
    """
    return load_with(
        times,
        prompt_tokens=engine.num_prompt_tokens_left,
        sequences=engine.num_outstanding,
        max_sequences=info.max_sequences,
        free_pages=info.num_pages if free_pages is None else free_pages,
        longest=min(info.context_length, info.capacity_tokens),
    )


def load_with(
    times: StepTimes,
    *,
    prompt_tokens: int,
    sequences: int,
    max_sequences: int,
    free_pages: int,
    longest: int,
) -> Load:
    """Return the load of an engine whose passes took these times; the rest is as in `Load`.

    Args:
        prompt_tokens: those that it has not computed yet.
    """
    shortest = times.expect(FEW_ROWS) or 0.0
    many = times.expect(MANY_ROWS) or 0.0
    row_seconds = max(0.0, many - shortest) / (MANY_ROWS - FEW_ROWS)
    return Load(
        prompt_seconds=prompt_tokens * row_seconds,
        sequences=sequences,
        max_sequences=max_sequences,
        turn_seconds=PASSES_PER_ANSWER * shortest / max(1, max_sequences),
        free_pages=free_pages,
        pass_seconds=shortest,
        row_seconds=row_seconds,
        longest=longest,
    )


def report_with(
    version: str,
    served: ServedModel,
    load: Load,
    held: HeldPages,
    *,
    instance: str,
    since: int | None,
    figures: Figures = NO_FIGURES,
) -> Report:
    """Return the report of a replica whose model is loaded.

    Args:
        held: the pages that the caller may be told of.
        instance: the name of their present state.
        since: the number of the report of this instance that the caller has; None: it has none.
        figures: what it has done, unless the caller counts that itself.
    """
    change = held.change_since(-1 if since is None else since)
    return Report(
        version=version,
        instance=instance,
        number=held.number,
        model=served,
        load=load,
        added=[name.hex() for name in change.added],
        dropped=[name.hex() for name in change.dropped],
        is_whole=change.is_whole,
        figures=figures,
    )
