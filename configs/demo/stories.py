"""Generate the short stories of the demo corpus: hero, problem, helper, end."""

from __future__ import annotations

import random
from dataclasses import dataclass

from configs.demo.phrases import Fillers, expand

PLACES = (
    "[in|near] a [small|quiet|green|dark] forest",
    "by [a wide river|the blue sea|a small lake]",
    "in [a little village|an old town|a big city]",
    "on [a sunny hill|a high mountain|an old farm]",
    "in a [tiny|red|wooden] house [at the end of the road|behind the mill|under a tall tree]",
)
TRAITS = ("curious", "kind", "brave", "shy", "clever", "small", "cheerful", "careful", "lonely")


@dataclass(frozen=True)
class Plot:
    """The middle and the end of a story, with slots `{hero}`, `{friend}` and `{thing}`."""

    trouble: str
    turn: str
    end: str


PLOTS = (
    Plot(
        "One [day|morning], {hero} lost a {thing}. {hero} looked [under the bed|behind the door], "
        "in the garden and [by the well|on the road], but it was gone.",
        'Then {friend} came along and said, "[I will help you|Let us look together]." They '
        "searched [all day|until the evening], and at last they saw something [shine|move] in the "
        "grass.",
        "It was the {thing}! {hero} was [so happy|very glad] and [hugged|thanked] {friend}. From "
        "that day on, they [were best friends|looked for lost things together].",
    ),
    Plot(
        "One night, [a great storm|a strong wind] came. [Rain fell|The rain fell] for hours, and "
        "{hero} was [afraid|cold and wet].",
        "[Somebody|Someone] knocked at the door. It was {friend}, who had [no roof any more|lost "
        "the way home]. {hero} [made some tea|lit a fire] and gave {friend} a {thing} and a warm "
        "blanket.",
        'In the morning the sun was shining. {friend} said, "A storm is not so bad with a '
        'friend." And {hero} [smiled|laughed] and agreed.',
    ),
    Plot(
        "{hero} had [always wanted|one wish:] to [see the sea|learn to sing|climb the tower|cross "
        'the river]. But everybody said, "You are too [small|slow|young]."',
        "Only {friend} believed in {hero}. Every day they practised [a little|together], and "
        "{friend} gave {hero} a {thing} for luck.",
        "At the end of the [summer|year], {hero} tried again, and [this time it worked|it went "
        'well]. Everybody [clapped|cheered]. "Never give up," said {hero} [with a smile|softly].',
    ),
    Plot(
        "One [day|afternoon], {hero} found a [strange|golden|very old] {thing} [on the path|in a "
        "box|at the market]. When {hero} touched it, it began to [glow|hum|speak].",
        '"[Give me back|Please bring me back] to {friend}," it said. So {hero} [walked|went] '
        "[over the hills|through the woods] for [three|two] days and found {friend} at last.",
        '{friend} was [amazed|full of joy] and said, "[An honest heart|Honesty] is worth more '
        'than gold." And {hero} went home with [a new friend|a full basket of food].',
    ),
    Plot(
        "It was a [hot|dry] summer, and the [well|river] was empty. {hero} was [thirsty|worried], "
        "and so were all the others.",
        "{hero} and {friend} [took|packed] a {thing} and [dug a deep hole|followed the dry river "
        "up the hill]. It was hard work, but they [did not stop|went on].",
        "[At last|On the third day], water came [out of the ground|down the hill]. Everybody "
        'drank and danced. "Together we can do it," said {friend}.',
    ),
    Plot(
        "Tomorrow was the birthday of {friend}, but {hero} had [no money|no present]. {hero} "
        "thought about it [all night|for a long time].",
        "In the morning {hero} [took|found] an old {thing}, [cleaned it|painted it red and blue] "
        "and [put a ribbon on it|wrapped it in leaves].",
        '{friend} opened the present and [laughed|cried] with joy. "You made it yourself," said '
        '{friend}. "That is the best present of all."',
    ),
)


def story(rng: random.Random, hero: str, animal: str, fillers: Fillers) -> str:
    """Return a story of about a hundred words with one hero, animal and thing."""
    friend = hero
    while friend == hero:
        friend = fillers.name(rng)
    plot = rng.choice(PLOTS)
    first = expand(
        "Once upon a time, there was a {trait} {animal} named {hero}, who lived {place}.",
        rng,
        trait=rng.choice(TRAITS),
        animal=animal,
        hero=hero,
        place=expand(rng.choice(PLACES), rng),
    )
    meet = expand(
        "{hero} had a friend, a {trait} {animal} called {friend}.",
        rng,
        trait=rng.choice(TRAITS),
        animal=rng.choice(fillers.animals),
        hero=hero,
        friend=friend,
    )
    slots = {"hero": hero, "friend": friend, "thing": rng.choice(fillers.things)}
    body = [expand(part, rng, **slots) for part in (plot.trouble, plot.turn, plot.end)]
    return " ".join([first, meet, *body])
