"""What is said of a model that does not fit: the field that could change it, and sensible units."""

import pytest

from engine.planning.footprint import size_text
from engine.planning.refusal import DoesNotFit, Limit, too_little
from server.models.plan_worker import refusal_text

GIVEN = ("device_memory", "ram")


@pytest.mark.parametrize(
    ("limit", "given", "begin", "field"),
    [
        (
            Limit("memory.device", is_set=False, is_ram=False),
            GIVEN,
            "'device_memory' (of which the driver keeps some): ",
            "device_memory",
        ),
        (
            Limit("memory.device", is_set=False, is_ram=False),
            (),
            "'device_memory' (not given: as this machine has it): ",
            "device_memory",
        ),
        (
            Limit("memory.device", is_set=False, is_ram=True),
            ("ram",),
            "'ram' (of which the page cache keeps some): ",
            "ram",
        ),
        (Limit("memory.ram", is_set=False, is_ram=True), ("ram",), "'ram': ", "ram"),
        (
            Limit("memory.ram", is_set=False, is_ram=True),
            (),
            "'ram' (not given: as this machine has it): ",
            "ram",
        ),
        (
            Limit("memory.device", is_set=True, is_ram=True),
            ("ram",),
            "memory.device in the model's file: ",
            "model",
        ),
    ],
)
def test_the_field_that_could_change_it_is_named(
    limit: Limit, given: tuple[str, ...], begin: str, field: str
) -> None:
    error = DoesNotFit(limit, "2.0 GiB is 1.0 GiB too little.")
    assert str(error) == f"{limit.key}: 2.0 GiB is 1.0 GiB too little."
    want = f"{begin}2.0 GiB is 1.0 GiB too little.", field
    assert refusal_text(error, given, lambda name: f"'{name}'") == want


def test_amounts_are_never_negative_and_have_sensible_units() -> None:
    text = too_little(-(600 << 20), 3 << 40, {"runtime": 600 << 20, "draft": 0, "KV": 1 << 30})
    assert text == "0.0 KiB is 3.0 TiB too little. Needed: runtime 600.0 MiB, KV 1.0 GiB"
    assert size_text(1536 << 40) == "1536.0 TiB"
