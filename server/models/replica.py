"""This server as one of several replicas: its load, its pages, and what it says of itself."""

from cluster.held_pages import HeldPages
from cluster.report import Figures, Load, naming_key
from cluster.served_model import ServedModel
from cluster.wire import Report
from server.models.loaded_model import LoadedModel
from server.version import version

FEW_ROWS, MANY_ROWS = 64, 2048  # of passes, between which the time of a row is taken
PASSES_PER_ANSWER = 20  # assumed, until a running sequence gives its place to another one


def load_of(model: LoadedModel) -> Load:
    """Return the work that a loaded model has, and its speed as far as passes have shown it."""
    info, history, engine = model.info, model.statistics.history, model.engine
    shortest = history.times.expect(FEW_ROWS) or 0.0
    longest = history.times.expect(MANY_ROWS) or 0.0
    row_seconds = max(0.0, longest - shortest) / (MANY_ROWS - FEW_ROWS)
    free = info.num_pages if history.last is None else history.last.free_pages
    return Load(
        prompt_seconds=engine.num_prompt_tokens_left * row_seconds,
        sequences=engine.num_outstanding,
        max_sequences=info.max_sequences,
        turn_seconds=PASSES_PER_ANSWER * shortest / max(1, info.max_sequences),
        free_pages=free,
        pass_seconds=shortest,
        row_seconds=row_seconds,
        longest=min(info.context_length, info.capacity_tokens),
    )


def figures_of(model: LoadedModel) -> Figures:
    """Return what a loaded model has done."""
    history, num_pages = model.statistics.history, model.info.num_pages
    free = num_pages if history.last is None else history.last.free_pages
    return Figures(
        passes=history.sums.passes,
        tokens=history.sums.tokens,
        tokens_per_second=history.recent()["tokens_per_second"],
        kv_pages=num_pages,
        kv_pages_used=max(0, num_pages - free),
    )


def served_model(model: LoadedModel) -> ServedModel:
    """Return what peers are told of a loaded model."""
    info, contents = model.engine.info or model.info, model.contents
    return ServedModel(
        model.entry.id,
        info.files,
        info.fingerprint,
        info.draft_methods,
        contents.name(info.form),
        info.arithmetic,
        contents.share,
    )


def pages_for(model: LoadedModel, owner: str, key: str) -> HeldPages:
    """Return the pages of the texts that came with an API key.

    Args:
        owner: the name of the key.
        key: the key itself, under which the pages are named.
    """
    return model.books.of(owner, model.info.num_pages, naming_key(key))


def report_of(model: LoadedModel | None, owner: str, key: str, since: int, instance: str) -> Report:
    """Return what this server says of itself to the holder of an API key.

    Args:
        model: the loaded model, if its engine is ready and takes requests.
        since, instance: those of the report that the caller has, of which the change is wanted.
    """
    if model is None:
        return Report(version(if_not_installed="0"), "", 0, None, None, [], [], is_whole=True)
    held = pages_for(model, owner, key)
    change = held.change_since(since if instance == model.books.instance else -1)
    return Report(
        version=version(if_not_installed="0"),
        instance=model.books.instance,
        number=held.number,
        model=served_model(model),
        load=load_of(model),
        added=[name.hex() for name in change.added],
        dropped=[name.hex() for name in change.dropped],
        is_whole=change.is_whole,
        figures=figures_of(model),
    )
