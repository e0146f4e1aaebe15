"""The route POST /v1/completions of the OpenAI API."""

from typing import Annotated

from fastapi import Depends, Request
from starlette.responses import Response

from server.chat.text_completion import text_chunks
from server.chat.text_writer import fold_text
from server.errors import ApiError
from server.http.api import Api
from server.http.body import body_of
from server.http.respond import respond
from server.http.state import state_of
from server.schemas.answers import TextCompletion
from server.schemas.completions import CompletionRequest

api = Api()


@api.post("/completions", CompletionRequest, TextCompletion, TextCompletion)
async def create_completion(
    request: Request, body: Annotated[CompletionRequest, Depends(body_of(CompletionRequest))]
) -> Response:
    """Continue one or several texts, given as strings or token ids."""
    most = state_of(request).settings.max_queue
    if len(body.prompts) > most:  # each is queued separately, so that not all could be accepted
        message = f"'prompt' has {len(body.prompts)} prompts; this server takes at most {most}."
        raise ApiError(message, code="invalid_value", param="prompt")
    return await respond(request, body, text_chunks, fold_text)
