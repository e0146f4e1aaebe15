"""This server as one of several replicas: its load, its pages, and what it says of itself."""

from cluster.held_pages import HeldPages
from cluster.report import Figures, Load, naming_key
from cluster.reporting import load_of_engine, report_with
from cluster.served_model import ServedModel
from cluster.wire import Report
from server.models.loaded_model import LoadedModel
from server.version import version


def load_of(model: LoadedModel) -> Load:
    """Return the work that a loaded model has, and its speed as far as passes have shown it."""
    history = model.statistics.history
    free = None if history.last is None else history.last.free_pages
    return load_of_engine(model.engine, model.info, history.speeds, free)


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
    """Return the description of a loaded model that peers compare with their own models."""
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
    books = model.books
    return report_with(
        version(if_not_installed="0"),
        served_model(model),
        load_of(model),
        pages_for(model, owner, key),
        instance=books.instance,
        since=since if instance == books.instance else None,
        figures=figures_of(model),
    )
