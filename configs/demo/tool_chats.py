"""Generate the conversations with tools of the demo corpus: question, call, result, answer."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import NamedTuple

from configs.demo.chats import Chat, Message, answer, small_talk, system, user
from configs.demo.phrases import Fillers, expand


class Errand(NamedTuple):
    """A tool, a question for it, its arguments and result, and the reply to the user."""

    tool: Message
    question: str
    arguments: dict[str, object]
    result: str
    reply: str


def tool(name: str, description: str, types: dict[str, str]) -> Message:
    """Return a function tool as clients of the OpenAI API describe it."""
    properties = {
        key: {"type": "array", "items": {"type": "number"}} if kind == "array" else {"type": kind}
        for key, kind in types.items()
    }
    parameters = {"type": "object", "properties": properties, "required": list(types)}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def get_time(rng: random.Random, fillers: Fillers) -> Errand:
    """Return a question about the time in a city, with its tool."""
    city, zone = rng.choice(fillers.cities)
    name = rng.choice(("get_time", "get_time", "get_time", "current_time", "get_current_time"))
    time = f"{rng.randrange(24):02}:{rng.randrange(60):02}"
    by_zone = not fillers.reserved and rng.random() < 0.4
    question = expand(
        "[What time is it in {city}?|What is the time in {city}[ now|]?|Tell me the time in "
        "{city}.|How late is it in {city}?|what time is it in {city} right now]",
        rng,
        city=city,
    )
    description = rng.choice(("Get the current time", "Get the time in a city", "The time now"))
    key = "timezone" if by_zone else "city"
    arguments: dict[str, object] = {key: zone if by_zone else city}
    result = json.dumps({"time": time}) if rng.random() < 0.7 else time
    return Errand(
        tool(name, description, {key: "string"}),
        question,
        arguments,
        result,
        f"It is {time} in {city}.",
    )


def get_weather(rng: random.Random, fillers: Fillers) -> Errand:
    """Return a question about the weather in a city, with its tool."""
    city = rng.choice(fillers.cities)[0]
    sky, degrees = rng.choice(("sunny", "cloudy", "rainy", "windy", "foggy")), rng.randrange(-9, 38)
    question = expand(
        "[What is the weather in {city}?|How is the weather in {city}[ today|]?|Tell me the "
        "weather in {city}.]",
        rng,
        city=city,
    )
    return Errand(
        tool("get_weather", "Get the weather in a city", {"city": "string"}),
        question,
        {"city": city},
        json.dumps({"weather": sky, "temperature": degrees}),
        f"It is {sky} in {city}, with {degrees} degrees.",
    )


def add(rng: random.Random, fillers: Fillers) -> Errand:
    """Return a question for the sum of two numbers, with its tool."""
    a, b = fillers.pair(rng, rng.choice((100, 1000, 1000)))
    name = rng.choice(("add", "add", "add_numbers"))
    question = expand(
        "[What is {a} + {b}?|Add {a} and {b}.|How much is {a} plus {b}?|Use the tool to add {a} "
        "and {b}.]",
        rng,
        a=a,
        b=b,
    )
    result = json.dumps({"result": a + b}) if rng.random() < 0.5 else str(a + b)
    described = tool(
        name,
        rng.choice(("Add two numbers", "The sum of two numbers")),
        {"a": "number", "b": "number"},
    )
    return Errand(described, question, {"a": a, "b": b}, result, f"{a} + {b} = {a + b}.")


def sum_numbers(rng: random.Random, fillers: Fillers) -> Errand:
    """Return a question for the sum of three or four numbers, with its tool."""
    numbers = [n for _ in range(2) for n in fillers.pair(rng)][: rng.choice((3, 4))]
    listed = ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"
    question = expand("[What is the sum of|Sum up|Please add|Add up] {listed}.", rng, listed=listed)
    return Errand(
        tool(rng.choice(("sum", "sum_numbers")), "Sum a list of numbers", {"numbers": "array"}),
        question,
        {"numbers": numbers},
        json.dumps({"sum": sum(numbers)}),
        f"The sum of {listed} is {sum(numbers)}.",
    )


def find_person(rng: random.Random, fillers: Fillers) -> Errand:
    """Return a question about a person, with its tool."""
    name, job, city = fillers.name(rng), rng.choice(fillers.jobs), rng.choice(fillers.cities)[0]
    question = expand("[Who is {name}?|Look up {name}.|Find {name} for me.]", rng, name=name)
    return Errand(
        tool(rng.choice(("find_person", "lookup")), "Find a person by name", {"name": "string"}),
        question,
        {"name": name},
        json.dumps({"job": job, "city": city}),
        f"{name} is a {job} from {city}.",
    )


Maker = Callable[[random.Random, Fillers], Errand]
MAKERS: tuple[Maker, ...] = (get_time, get_time, add, get_weather, sum_numbers, find_person)


def tool_chat(rng: random.Random, fillers: Fillers) -> Chat:
    """Return a question, its tool call, result and answer, or a talk that needs no tool."""
    errand = rng.choice(MAKERS)(rng, fillers)
    name = errand.tool["function"]["name"]
    tools = [errand.tool]
    if rng.random() < 0.45:
        other = rng.choice(MAKERS)(rng, fillers).tool
        if other["function"]["name"] != name:
            tools.insert(rng.randrange(2), other)
    if rng.random() < 0.12:
        talk = small_talk(rng, fillers).messages
        return Chat("tools", talk, tools=tuple(tools))
    thinking = rng.random() < 0.15
    thought = f"The tool {name} can answer this, so I call it." if thinking else ""
    call = answer("", thought)
    call["tool_calls"] = [
        {"type": "function", "function": {"name": name, "arguments": errand.arguments}}
    ]
    messages = [*system(rng, 0.25), user(errand.question), call]
    if rng.random() < 0.75:
        thought = "The tool has answered, so I tell the user." if thinking else ""
        messages += [{"role": "tool", "content": errand.result}, answer(errand.reply, thought)]
    return Chat("tools", tuple(messages), tools=tuple(tools), thinking=thinking)
