"""Bodies as real clients send them, each with the path to which it is sent."""

from tests.fuzz.requests.agents import AGENTS_SDK, CLAUDE_CODE, CLAUDE_HOSTED, CLAUDE_TITLE, CODEX
from tests.fuzz.requests.chats import (
    AI_SDK,
    AIDER,
    CLINE,
    CONTINUE,
    FILL,
    HARNESS,
    HOSTED,
    LANGCHAIN,
    LITELLM,
    LLM,
    OLD_FUNCTIONS,
    OPEN_WEBUI,
    OPEN_WEBUI_TITLE,
    OPENCODE,
    REFUSALS,
)
from tests.fuzz.requests.parts import Body

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"

# The doors, each with bodies of real clients: the same body may go to several doors.
REQUESTS: tuple[tuple[str, Body], ...] = (
    *((RESPONSES, body) for body in (CODEX, CODEX, AGENTS_SDK)),
    *((MESSAGES, body) for body in (CLAUDE_CODE, CLAUDE_CODE, CLAUDE_TITLE, CLAUDE_HOSTED)),
    *((COUNT, body) for body in (CLAUDE_CODE, CLAUDE_HOSTED)),
    *(
        (CHAT, body)
        for body in (
            *(OPENCODE, CONTINUE, AIDER, OPEN_WEBUI, OPEN_WEBUI_TITLE, LANGCHAIN, LITELLM, AI_SDK),
            *(CLINE, LLM, OLD_FUNCTIONS, REFUSALS, HOSTED),
        )
    ),
    *((TEXT, body) for body in (HARNESS, FILL)),
    *(("/v1/apply-template", body) for body in (OPENCODE, LANGCHAIN, OLD_FUNCTIONS)),
    *(("/v1/tokenize", body) for body in (OPENCODE, HOSTED)),
    ("/v1/tokenize", {"content": "Hello", "add_special": True, "with_pieces": True}),
    ("/v1/detokenize", {"tokens": [72, 105]}),
    ("/v1/chat/completions/input_tokens", OPENCODE),
    ("/v1/responses/input_tokens", CODEX),
)
