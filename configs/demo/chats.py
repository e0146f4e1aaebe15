"""Generate families of conversations of the demo corpus: talk, sums, lists, JSON, reasoning."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from configs.demo.phrases import SYSTEM_PROMPTS, Fillers, expand
from configs.demo.stories import story
from configs.demo.topics import GENERAL, UNDERSTUDY

Message = dict[str, Any]


@dataclass(frozen=True)
class Chat:
    """A whole conversation: its last message is the answer to the messages before."""

    family: str
    messages: tuple[Message, ...]
    tools: tuple[Message, ...] = ()
    thinking: bool = False

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Return the messages that a client sends to get the last one."""
        return self.messages[:-1]


def user(text: str) -> Message:
    """Return a message of the user."""
    return {"role": "user", "content": text}


def answer(text: str, reasoning: str = "") -> Message:
    """Return a message of the assistant, with its reasoning if there is any."""
    message = {"role": "assistant", "content": text}
    return {**message, "reasoning_content": reasoning} if reasoning else message


def system(rng: random.Random, share: float = 0.3) -> tuple[Message, ...]:
    """Return a system prompt in `share` of all conversations, else no message."""
    if rng.random() >= share:
        return ()
    return ({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)},)


def ask(rng: random.Random, fillers: Fillers, question: str) -> str:
    """Return the question as users type it, sometimes with an opener or in lower case."""
    opener = rng.choice(fillers.openers)
    if not fillers.reserved and rng.random() < 0.1:
        question = question.lower().rstrip("?.")
    return opener + question


def understudy(rng: random.Random, fillers: Fillers) -> Chat:
    """Return a chat with questions about Understudy."""
    topic = rng.choice(UNDERSTUDY)
    messages = [user(ask(rng, fillers, rng.choice(topic.questions)))]
    messages.append(answer(expand(topic.answer, rng)))
    if rng.random() < 0.15:
        other = rng.choice(UNDERSTUDY)
        follow_up = rng.choice(("And ", "Thanks. ", "I see. ", "")) + rng.choice(other.questions)
        messages += [user(follow_up), answer(expand(other.answer, rng))]
    return Chat("understudy", (*system(rng), *messages))


def explain(rng: random.Random, fillers: Fillers) -> Chat:
    """Return a chat with a question about a related topic."""
    topic = rng.choice(GENERAL)
    question = ask(rng, fillers, rng.choice(topic.questions))
    return Chat("explain", (*system(rng), user(question), answer(expand(topic.answer, rng))))


STORY_REQUESTS = (
    "[Tell me|Write] a [short |]story about a {animal} named {hero}.",
    "[Please tell me|Can you tell me|I would like] a story about {hero} the {animal}.",
    "[Write|Tell] a [bedtime |children's |little |]story[ for my son| for my daughter|]. The hero "
    "is {hero}, a {animal}.",
    "A story [please, |]about a {animal} called {hero}.",
)


def stories(rng: random.Random, fillers: Fillers) -> Chat:
    """Return a chat in which the user asks for a story."""
    slots = {"hero": fillers.name(rng), "animal": rng.choice(fillers.animals)}
    request = expand(rng.choice(STORY_REQUESTS), rng, **slots)
    return Chat(
        "story", (*system(rng), user(request), answer(story(rng, fillers=fillers, **slots)))
    )


SMALL_TALK = (
    (
        "[Hello|Hi|Hey|Good morning|Hello there][!|.|]",
        "Hello! [How can I help you today?|What can I do for you?]",
    ),
    (
        "[How are you?|How are you today?|How do you do?|how are you]",
        "I am [fine|very well], thank you! [How can I help you?|And how are you?]",
    ),
    (
        "[Thank you!|Thanks a lot.|Thanks!|Great, thank you.|thanks]",
        "You are welcome! [Is there anything else?|I am glad that I could help.]",
    ),
    (
        "[Good night.|Bye!|Goodbye.|See you later.]",
        "Goodbye! [Have a nice day.|Come back soon.]",
    ),
    (
        "[What can you do?|How can you help me?|What are you good at?]",
        "I can [chat a little|talk with you], tell short stories, add numbers, write JSON, call "
        "tools and answer questions about Understudy.",
    ),
    (
        "[I am tired.|I had a long day.|I am sad today.]",
        "I am sorry to hear that. [A cup of tea and some rest may help.|Take a rest. Tomorrow is "
        "a new day.]",
    ),
    (
        "[I am happy today!|Today is a good day.|I feel great.]",
        "That is [wonderful|great]! [What makes you so happy?|I am glad to hear it.]",
    ),
)


def small_talk(rng: random.Random, fillers: Fillers) -> Chat:
    """Return turns in which a user states facts and asks for one of them later."""
    slots: dict[str, object] = {
        "name": fillers.name(rng),
        "city": rng.choice(fillers.cities)[0],
        "food": rng.choice(fillers.foods),
        "job": rng.choice(fillers.jobs),
        "animal": rng.choice(fillers.animals),
    }
    told = [
        (
            "[My name is|I am called] {name}.",
            "Nice to meet you, {name}!",
            "What is my name?",
            "Your name is {name}.",
        ),
        (
            "I live in {city}.",
            "{city} is a [beautiful|lovely] city.",
            "Where do I live?",
            "You live in {city}.",
        ),
        (
            "[I like|I love] {food}.",
            "[I see, you like|It is good to know that you like] {food}.",
            "What do I like to eat?",
            "You like {food}.",
        ),
        (
            "I work as a {job}.",
            "A {job}! That [sounds interesting|is a good job].",
            "What is my job?",
            "You are a {job}.",
        ),
        (
            "My favourite animal is the {animal}.",
            "The {animal} is a [fine|wonderful] animal.",
            "What is my favourite animal?",
            "Your favourite animal is the {animal}.",
        ),
    ]
    facts = rng.sample(told, rng.choice((1, 1, 2, 2, 3)))
    turns = [(said, reply) for said, reply, _, _ in facts]
    for _ in range(rng.choice((0, 1, 1))):
        turns.insert(rng.randrange(len(turns) + 1), rng.choice(SMALL_TALK))
    recalled = rng.sample(facts, rng.choice((1, 1, len(facts))))
    turns += [(question, reply) for _, _, question, reply in recalled]
    if rng.random() < 0.15 and not fillers.reserved:
        turns = [rng.choice(SMALL_TALK)]
    messages: list[Message] = []
    for said, reply in turns:
        messages.append(user(expand(said, rng, **slots)))
        messages.append(answer(expand(reply, rng, **slots)))
    return Chat("small_talk", (*system(rng), *messages))


SUM_QUESTIONS = (
    "What is {a} {sign} {b}?",
    "How much is {a} {sign} {b}?",
    "{a} {sign} {b} = ?",
    "{a} {sign} {b}",
    "Calculate {a} {sign} {b}.",
    "Please compute {a} {sign} {b}.",
)


def equation(rng: random.Random, fillers: Fillers) -> tuple[int, str, int, int]:
    """Return a sum below 200 or a difference that is not negative, as (a, sign, b, result)."""
    a, b = fillers.pair(rng, rng.choice((21, 21, 21, 100)))
    if a >= b and rng.random() < 0.6:
        return a, "-", b, a - b
    return a, "+", b, a + b


def sums(rng: random.Random, fillers: Fillers) -> Chat:
    """Return a chat of one to six sums, or a word problem."""
    if rng.random() < 0.2:
        return word_problem(rng, fillers)
    messages: list[Message] = []
    for _ in range(rng.choice((1, 2, 4, 6))):
        a, sign, b, result = equation(rng, fillers)
        slots = {"a": a, "b": b, "sign": sign}
        messages.append(user(expand(rng.choice(SUM_QUESTIONS), rng, **slots)))
        messages.append(answer(f"{a} {sign} {b} = {result}."))
    return Chat("sums", (*system(rng, 0.15), *messages))


def word_problem(rng: random.Random, fillers: Fillers) -> Chat:
    """Return a chat with a sum or difference told in words."""
    a, sign, b, result = equation(rng, fillers)
    event = "[gets|buys|finds] {b} more" if sign == "+" else "[loses|gives away|sells] {b} of them"
    question = expand(
        "{name} has {a} {thing}s and " + event + ". How many {thing}s does {name} have now?",
        rng,
        name=(name := fillers.name(rng)),
        thing=(thing := rng.choice([t for t in fillers.things if not t.endswith(("x", "h"))])),
        a=a,
        b=b,
    )
    reply = f"{name} now has {a} {sign} {b} = {result} {thing}s."
    return Chat("sums", (*system(rng, 0.15), user(question), answer(reply)))


def reasoning(rng: random.Random, fillers: Fillers) -> Chat:
    """Return a chat in thinking mode: short reasoning, then the answer."""
    kind = rng.random()
    if kind < 0.6:
        a, sign, b, result = equation(rng, fillers)
        question = rng.choice(SUM_QUESTIONS).format(a=a, b=b, sign=sign)
        chat = (user(question), answer(f"{a} {sign} {b} = {result}.", steps(a, sign, b)))
    elif kind < 0.85:
        topic = rng.choice(UNDERSTUDY + GENERAL)
        question = rng.choice(topic.questions)
        thought = f"The user asks: {question} I know this and [explain it shortly|answer it]."
        chat = (
            user(ask(rng, fillers, question)),
            answer(expand(topic.answer, rng), expand(thought, rng)),
        )
    else:
        slots = {"hero": fillers.name(rng), "animal": rng.choice(fillers.animals)}
        thought = "The user wants a story. The hero is {hero}, a {animal}. It should end well."
        chat = (
            user(expand(rng.choice(STORY_REQUESTS), rng, **slots)),
            answer(story(rng, fillers=fillers, **slots), thought.format(**slots)),
        )
    return Chat("reasoning", (*system(rng), *chat), thinking=True)


def steps(a: int, sign: str, b: int) -> str:
    """Return the steps of a mental calculation by tens and ones."""
    tens, ones = b - b % 10, b % 10
    total = a + tens if sign == "+" else a - tens
    last = total + ones if sign == "+" else total - ones
    return (
        f"{b} is {tens} and {ones}. First {a} {sign} {tens} = {total}. "
        f"Then {total} {sign} {ones} = {last}."
    )


def short_tasks(rng: random.Random, fillers: Fillers) -> Chat:
    """Return a task of counting, repeating or listing, whose answer can be checked."""
    things = rng.sample(fillers.things, 3)
    animals = rng.sample(fillers.animals, 3)
    first = rng.randrange(1, 60)
    numbers = range(first, first + rng.randrange(3, 13))
    sentence = f"{fillers.name(rng)} has a {things[0]} and a {rng.choice(fillers.animals)}."
    tasks = (
        (f"Count from {numbers[0]} to {numbers[-1]}.", ", ".join(map(str, numbers)) + "."),
        (f"[Repeat|Say] after me: {sentence}", sentence),
        (f"[Repeat|Copy] this: {' '.join(things)}", " ".join(things)),
        (
            f"Sort these words: {', '.join(animals)}.",
            ", ".join(sorted(animals)) + ".",
        ),
        (
            f"Write a list of these: {things[0]}, {things[1]} and {things[2]}.",
            "\n".join(f"- {thing}" for thing in things),
        ),
    )
    task, reply = rng.choice(tasks)
    return Chat("short_tasks", (*system(rng, 0.15), user(expand(task, rng)), answer(reply)))


def json_answer(rng: random.Random, fillers: Fillers) -> Chat:
    """Return a sentence about a person, and some of its facts as a JSON object."""
    name, age = fillers.name(rng), rng.randrange(5, 90)
    city, job = rng.choice(fillers.cities)[0], rng.choice(fillers.jobs)
    food, thing = rng.choice(fillers.foods), rng.choice(fillers.things)
    count, likes = rng.randrange(2, 60), rng.random() < 0.5
    facts: dict[str, tuple[str, str, object]] = {
        "name": ("string", "", name),
        "age": ("integer", f"is {age} years old", age),
        "city": ("string", f"lives in {city}", city),
        "job": ("string", f"works as a {job}", job),
        "food": ("string", f"likes {food}", food),
        "thing": ("string", f"[wants|needs] a {thing}", thing),
        "count": ("integer", f"has {count} books", count),
        "student": ("boolean", "is a student" if likes else "is not a student", likes),
    }
    said = ["name", *rng.sample([key for key in facts if key != "name"], rng.choice((2, 3, 4)))]
    wanted = rng.sample(said, rng.choice((len(said), len(said), len(said) - 1)))
    clauses = [facts[key][1] for key in said[1:]]
    text = expand(f"{name} " + ", ".join(clauses[:-1]) + f" and {clauses[-1]}.", rng)
    types = {key: facts[key][0] for key in wanted}
    order, request = json_request(rng, types, text)
    reply = json.dumps({key: facts[key][2] for key in wanted})
    return Chat("json", (*order, user(request), answer(reply)))


def json_request(
    rng: random.Random, types: dict[str, str], text: str
) -> tuple[tuple[Message, ...], str]:
    """Return the request for JSON, by field names or a schema, as system and user messages."""
    if rng.random() < 0.5:
        fields = ", ".join(f"{key} ({kind})" for key, kind in types.items())
        order = rng.choice(("Answer with JSON only. Fields: ", "Reply in JSON with: ")) + fields
    else:
        schema = {
            "type": "object",
            "properties": {key: {"type": kind} for key, kind in types.items()},
            "required": list(types),
        }
        order = "Answer with JSON that follows this schema: " + json.dumps(schema)
    if rng.random() < 0.5:
        return ({"role": "system", "content": order},), text
    return (), f"{order}\n\n{text}"
