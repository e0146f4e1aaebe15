"""The choice of the drafting method."""

from types import SimpleNamespace
from typing import cast

import pytest

from engine.errors import ModelError
from engine.planning.choice import Scheme, best_scheme
from engine.spec import DraftSpec, ModelSpec, TargetSpec

AUTO = ModelSpec("m", TargetSpec("m"))


def scheme(method: str, speeds: dict[str, float]) -> Scheme:
    """Return a scheme with this forecast speed. Raises `ModelError` for a method without one."""
    if method not in speeds:
        raise ModelError(f"no {method}")
    forecast = SimpleNamespace(tokens_per_second=speeds[method], tokens_per_pass=1.0)
    return cast(Scheme, SimpleNamespace(method=method, forecast=forecast))


@pytest.mark.parametrize(
    ("speeds", "best"),
    [
        ({"ngram": 1.0, "subspec": 2.0}, "subspec"),
        ({"ngram": 2.0, "subspec": 1.0}, "ngram"),
        (
            {"ngram": 1.0, "subspec": 1.0},
            "ngram",
        ),  # of equal ones the first, which takes no device memory
        ({"ngram": 1.0}, "ngram"),
        ({"subspec": 1.0}, "subspec"),
        ({"ngram": 1.0, "recycling": 9.0}, "ngram"),  # not a candidate
    ],
)
def test_the_fastest_candidate_that_can_serve_is_chosen(
    speeds: dict[str, float], best: str
) -> None:
    assert best_scheme(AUTO, lambda method: scheme(method, speeds)).method == best


def test_a_named_method_is_the_only_one_that_is_tried() -> None:
    spec = ModelSpec("m", TargetSpec("m"), draft=DraftSpec("recycling"))
    assert best_scheme(spec, lambda method: scheme(method, {"recycling": 1.0})).method == (
        "recycling"
    )


def test_if_nothing_fits_the_first_candidates_error_is_raised() -> None:
    with pytest.raises(ModelError, match="no ngram"):
        best_scheme(AUTO, lambda method: scheme(method, {}))
