"""What a replica reports of itself, from what its engine shows."""

from cluster.held_pages import HeldPages
from cluster.pass_speeds import PassSpeeds
from cluster.report import Figures, Load
from cluster.served_model import ServedModel
from cluster.wire import Report
from engine.messages import ModelInfo
from engine.process.interface import Engine

NO_FIGURES = Figures()
PASSES_PER_ANSWER = 20  # assumed, until a running sequence gives its place to another one


def load_of_engine(
    engine: Engine, info: ModelInfo, speeds: PassSpeeds, free_pages: int | None
) -> Load:
    """Return the work that an engine has, and its speed as far as passes have shown it.

    Args:
        free_pages: of the latest pass; None before the first one.
    """
    return load_with(
        speeds,
        prompt_tokens=engine.num_prompt_tokens_left,
        sequences=engine.num_outstanding,
        max_sequences=info.max_sequences,
        free_pages=info.num_pages if free_pages is None else free_pages,
        longest=min(info.context_length, info.capacity_tokens),
    )


def load_with(
    speeds: PassSpeeds,
    *,
    prompt_tokens: int,
    sequences: int,
    max_sequences: int,
    free_pages: int,
    longest: int,
) -> Load:
    """Return the load of an engine whose passes have these speeds; the rest is as in `Load`.

    Args:
        prompt_tokens: those that it has not computed yet.
    """
    return Load(
        prompt_seconds=prompt_tokens * speeds.row_seconds,
        sequences=sequences,
        max_sequences=max_sequences,
        turn_seconds=PASSES_PER_ANSWER * speeds.pass_seconds / max(1, max_sequences),
        free_pages=free_pages,
        pass_seconds=speeds.pass_seconds,
        row_seconds=speeds.row_seconds,
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
