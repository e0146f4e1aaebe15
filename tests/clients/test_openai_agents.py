"""Tests with openai-agents: tools and typed answers, with chat completions and responses."""

import asyncio
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from tests.clients.conftest import STORY, TIME, get_time

agents = pytest.importorskip("agents")
openai = pytest.importorskip("openai")


class Pet(BaseModel):
    """A pet with name and age."""

    name: Literal["Ada", "Bo"]
    age: int


@pytest.fixture(params=["OpenAIChatCompletionsModel", "OpenAIResponsesModel"])
def agent(url: str, request: pytest.FixtureRequest) -> Any:
    agents.set_tracing_disabled(True)
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    model = getattr(agents, request.param)(model="demo", openai_client=client)
    settings = agents.ModelSettings(temperature=0, max_tokens=160)
    return agents.Agent(name="clock", model=model, model_settings=settings)


async def run(agent: Any, question: str) -> Any:
    """Return the agent's final output, which is the same streamed and whole."""
    whole = await agents.Runner.run(agent, question)
    streamed = agents.Runner.run_streamed(agent, question)
    async for _ in streamed.stream_events():
        pass
    assert streamed.final_output == whole.final_output
    return whole.final_output


def test_an_agent_calls_a_tool_and_answers(agent: Any) -> None:
    agent = agent.clone(tools=[agents.function_tool(get_time)])
    assert "14:05" in asyncio.run(run(agent, TIME))


def test_an_agent_answers_with_an_object_of_a_class(agent: Any) -> None:
    assert isinstance(asyncio.run(run(agent.clone(output_type=Pet), STORY)), Pet)
