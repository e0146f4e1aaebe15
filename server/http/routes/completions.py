"""The route POST /v1/completions of the OpenAI API."""

import functools
from typing import Annotated

from fastapi import Depends, Request
from starlette.responses import Response

from server.chat.received import Received
from server.chat.text_completion import text_chunks
from server.chat.text_writer import fold_text
from server.http.api import Api
from server.http.body import body_of
from server.http.respond import respond
from server.http.state import state_of
from server.schemas.answers import TextCompletion
from server.schemas.completions import CompletionRequest

api = Api()


@api.post("/completions", CompletionRequest, TextCompletion, TextCompletion)
async def create_completion(
    request: Request,
    received: Annotated[Received[CompletionRequest], Depends(body_of(CompletionRequest))],
) -> Response:
    """Continue one or several texts, given as strings or token ids."""
    most = state_of(request).settings.max_queue
    write = functools.partial(text_chunks, received.raw, most)
    return await respond(request, received.body, write, fold_text)
