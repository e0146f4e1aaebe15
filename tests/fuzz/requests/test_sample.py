"""A fixed sample of the requests of `make fuzz-requests`, and of what its checks find."""

from pathlib import Path

import pytest

from tests.fuzz.requests.clients import CHAT
from tests.fuzz.requests.marks import expected_texts
from tests.fuzz.requests.mutations import make_request
from tests.fuzz.requests.run import target
from tests.fuzz.requests.templates import TEMPLATES

CASES = 100


@pytest.mark.parametrize("template", ["everything", "alternating"])
async def test_mutated_bodies_of_clients_are_answered_or_refused(
    tmp_path: Path, template: str
) -> None:
    async with target(TEMPLATES[template], tmp_path) as server:
        outcomes = [await server.run(seed) for seed in range(CASES)]
    assert [outcome for outcome in outcomes if outcome.wrong] == []
    assert {outcome.status for outcome in outcomes} <= {200, 400}
    assert sum(outcome.status == 200 for outcome in outcomes) > CASES / 4


def test_a_seed_gives_the_same_request() -> None:
    assert [make_request(seed) for seed in range(50)] == [make_request(seed) for seed in range(50)]
    assert len({repr(make_request(seed)) for seed in range(50)}) > 45


PROMPT = "Hi Qz0000 I Qz0001 No Qz0002 Go Qz0003 Ada"
HEADER = "tools[0] web_search"


@pytest.mark.parametrize(
    ("prompt", "header", "lost"),
    [
        (PROMPT, HEADER, ""),
        (PROMPT.replace(" Qz0001", ""), HEADER, "messages[1].content[0].text"),
        (PROMPT.replace(" Qz0002", ""), HEADER, "messages[1].refusal"),
        (PROMPT.replace(" Ada", ""), HEADER, "messages[2].name"),
        (PROMPT, "", "tools[0]"),
    ],
)
def test_a_lost_text_is_found(prompt: str, header: str, lost: str) -> None:
    body = {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": [{"type": "text", "text": "I"}], "refusal": "No"},
            {"role": "user", "content": "Go", "name": "Ada"},
        ],
        "tools": [{"type": "web_search"}],
    }
    assert expected_texts(CHAT, body).fault(prompt, header).partition(" ")[0] == lost
