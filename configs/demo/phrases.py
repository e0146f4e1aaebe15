"""Words and sentence patterns of the demo corpus.

A pattern contains `[a|b]` for a random choice and `{name}` for a slot. Choices vary the text, so
that a draft cannot predict all of it.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

CHOICE = re.compile(r"\[([^\[\]]*)\]")


def words(text: str) -> tuple[str, ...]:
    """Return the words of a line."""
    return tuple(text.split())


def expand(pattern: str, rng: random.Random, **slots: object) -> str:
    """Choose one of each `[a|b]`, innermost first, then fill in the `{slots}`."""
    while match := CHOICE.search(pattern):
        chosen = rng.choice(match.group(1).split("|"))
        pattern = pattern[: match.start()] + chosen + pattern[match.end() :]
    return pattern.format(**slots)


@dataclass(frozen=True)
class Fillers:
    """A set of slot values; the training set and the held-out set share no name."""

    names: tuple[str, ...]
    cities: tuple[tuple[str, str], ...]  # city, time zone
    animals: tuple[str, ...]
    things: tuple[str, ...]
    foods: tuple[str, ...]
    jobs: tuple[str, ...]
    openers: tuple[str, ...]
    reserved: bool

    def name(self, rng: random.Random) -> str:
        """Return a listed name, or often a made-up one in training, so that copying is learned."""
        if self.reserved or rng.random() < 0.6:
            return rng.choice(self.names)
        return made_up_name(rng)

    def pair(self, rng: random.Random, limit: int = 100) -> tuple[int, int]:
        """Return two numbers below `limit` from the pairs that belong to this set."""
        while True:
            a, b = rng.randrange(limit), rng.randrange(limit)
            if is_reserved_pair(a, b) == self.reserved:
                return a, b


def is_reserved_pair(a: int, b: int) -> bool:
    """Return whether a pair is held out of training, as one pair in 41 is."""
    return (37 * a + 11 * b) % 41 == 0


def made_up_name(rng: random.Random) -> str:
    """Return a name of two or three syllables that is not held out."""
    while True:
        syllables = rng.choices(SYLLABLES, k=rng.choice((2, 2, 3)))
        name = "".join(syllables).capitalize()
        if name not in HELD_OUT.names:
            return name


SYLLABLES = words(
    "ba bel bo da del do el fa fi ga gor ha hel ik ja jo ka kel ki la len lo ma mel mi mo na nel "
    "ni no or pa pel pi ra ren ri ro sa sel si so ta tel ti to ul va vel vi wen ya yor za zel"
)

TRAINING = Fillers(
    names=words(
        "Mia Ben Anna Tom Lily Max Sara Leo Nina Paul Emma Jack Zoe Sam Ivy Oscar Ruby Hugo "
        "Clara Finn Alice Noah Ella Peter Rosa Felix Maya Daniel Laura Simon Julia Mark Eva "
        "Adam Grace Henry Lucy Victor Olga Karim Aisha Yuki Chen Priya Diego Elena Omar Ingrid"
    ),
    cities=(
        ("Paris", "Europe/Paris"),
        ("London", "Europe/London"),
        ("Berlin", "Europe/Berlin"),
        ("Madrid", "Europe/Madrid"),
        ("Rome", "Europe/Rome"),
        ("Vienna", "Europe/Vienna"),
        ("Prague", "Europe/Prague"),
        ("Warsaw", "Europe/Warsaw"),
        ("Athens", "Europe/Athens"),
        ("Dublin", "Europe/Dublin"),
        ("Moscow", "Europe/Moscow"),
        ("Tokyo", "Asia/Tokyo"),
        ("Seoul", "Asia/Seoul"),
        ("Delhi", "Asia/Kolkata"),
        ("Dubai", "Asia/Dubai"),
        ("Shanghai", "Asia/Shanghai"),
        ("Singapore", "Asia/Singapore"),
        ("Bangkok", "Asia/Bangkok"),
        ("Cairo", "Africa/Cairo"),
        ("Nairobi", "Africa/Nairobi"),
        ("Lagos", "Africa/Lagos"),
        ("New York", "America/New_York"),
        ("Chicago", "America/Chicago"),
        ("Denver", "America/Denver"),
        ("Toronto", "America/Toronto"),
        ("Mexico City", "America/Mexico_City"),
        ("Lima", "America/Lima"),
        ("Sydney", "Australia/Sydney"),
        ("Melbourne", "Australia/Melbourne"),
        ("Auckland", "Pacific/Auckland"),
    ),
    animals=words(
        "fox rabbit bear mouse owl cat dog duck frog hedgehog squirrel turtle penguin otter "
        "lion elephant pony goat sparrow beaver badger wolf dragon whale"
    ),
    things=words(
        "apple book lamp key coin stone shell button pencil candle ball basket bell map cup "
        "kite hat drum brush box ring spoon chair clock mirror ticket flower"
    ),
    foods=words(
        "pizza soup bread rice cake pasta salad cheese honey pancakes tomatoes noodles "
        "curry chocolate"
    ),
    jobs=words(
        "teacher doctor baker pilot farmer painter nurse lawyer engineer gardener driver "
        "writer cook singer"
    ),
    openers=(
        "",
        "",
        "",
        "",
        "Hi! ",
        "Hello. ",
        "Please tell me: ",
        "Quick question: ",
        "I am new here. ",
        "Sorry to ask, but ",
        "I wonder: ",
        "Another question. ",
        "Hey, ",
        "Good morning. ",
        "Can you help me? ",
        "I have a question. ",
        "My colleague asked me: ",
    ),
    reserved=False,
)

HELD_OUT = Fillers(
    names=words("Tilda Bruno Marta Oliver Selma Kenji Nora Edgar Wanda Boris Carla Liam"),
    cities=(
        ("Oslo", "Europe/Oslo"),
        ("Lisbon", "Europe/Lisbon"),
        ("Helsinki", "Europe/Helsinki"),
        ("Jakarta", "Asia/Jakarta"),
        ("Boston", "America/New_York"),
        ("Accra", "Africa/Accra"),
    ),
    animals=words("deer swan camel crow seal tiger"),
    things=words("feather whistle marble violin blanket ladder bottle pebble"),
    foods=words("cherries lentils waffles beans"),
    jobs=words("dentist tailor sailor librarian"),
    openers=(
        "Good evening! ",
        "One thing I want to know: ",
        "I just found this project. ",
        "For my notes: ",
    ),
    reserved=True,
)

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are Understudy, a helpful assistant.",
    "Answer the user's questions.",
    "Be kind and clear.",
    "You are a helpful assistant. Keep your answers short.",
    "You are a careful assistant who gives correct answers.",
    "Help the user.",
    "You are the demo model of Understudy.",
)
