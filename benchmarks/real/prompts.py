"""The prompts of the benchmarks on a published model: six kinds of text, three chats of each."""

from argparse import ArgumentParser

PROMPTS: dict[str, tuple[str, ...]] = {
    "chat": (
        "Why is the sky blue? Explain it to a ten-year-old.",
        "I slept badly and have an exam today. What should I do this morning?",
        "What is the difference between a virus and a bacterium?",
    ),
    "code": (
        "Write a Python function that returns the n-th Fibonacci number, with a docstring.",
        "Write an HTML page with a form that asks for a name and an e-mail address.",
        "Write a Python class for a bank account with deposit, withdraw and balance.",
    ),
    "list": (
        "List ten animals that live in the sea, with one fact about each.",
        "List the months of the year with the number of days of each.",
        "Give me a packing list for a week of hiking in the mountains.",
    ),
    "JSON": (
        "Write a JSON array of five books. Each has a title, an author, a year and a genre.",
        "Write a JSON object that describes a restaurant: name, address, opening hours and menu.",
        "Write the settings of a web server as JSON: host, port, log level and allowed origins.",
    ),
    "rewriting": (
        "Correct the spelling of this text and repeat it:\nLast sumer we went to the montains with "
        "our frends. The wether was realy good on the first day, but then it startet to rain and "
        "we had to stay in the hut. We plaied cards and told each other storys untill late in the "
        "night. On the last day the sun came out agan and we swam in the lake bevore we went home.",
        "Rewrite this text in the past tense:\nThe captain stands on the bridge and looks at the "
        "sea. The wind blows from the west, and the waves grow higher every hour. She gives her "
        "orders in a calm voice, and the crew works quickly. Nobody speaks of the storm that comes "
        "nearer, but everyone thinks of it while the ship turns slowly to the north.",
        "Repeat this text, but with the name Anna in place of Peter:\nPeter gets up at six every "
        "day. Peter makes coffee, feeds the cat and reads the newspaper. At eight Peter takes the "
        "tram to the harbour, where Peter works in an office with a view of the ships. In the "
        "evening Peter meets friends, and they talk about football, music and the weather.",
    ),
    "story": (
        "Tell me a story about a lighthouse keeper and a whale.",
        "Write the beginning of a crime novel that is set in a small village in winter.",
        "Write a fairy tale about a girl who can talk to trees.",
    ),
}
MOST = min(map(len, PROMPTS.values()))


def add_prompts_option(parser: ArgumentParser) -> None:
    """Add the option `--prompts`, which refuses more prompts than there are of each kind."""
    parser.add_argument(
        "--prompts",
        type=int,
        default=1,
        choices=range(1, MOST + 1),
        metavar="N",
        help=f"of each kind of text, 1 to {MOST}",
    )
