"""The table that `understudy plan` prints.

Modules of the engine are imported on first use, because they load torch.
"""

from collections import Counter
from textwrap import shorten
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.errors import escaped

if TYPE_CHECKING:
    from engine.planning.forecast import Forecast
    from engine.planning.plan import Plan
    from engine.planning.preview import Preview

LONGEST_NOTE = 60  # characters
Row = tuple[str, str, str]  # name, figure, note


def show(found: "Preview", console: Console) -> None:
    """Print the plan, its forecast speeds, and the change that would help most."""
    from engine.planning.footprint import size_text

    plan = found.scheme.plan
    source = "checkpoint" if found.has_weights else "config.json alone"
    name, kind = escape(escaped(found.model_id)), escape(escaped(found.model_type))
    console.print(f"\n[bold]{name}[/bold] ({kind}, from its {source})")
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    table.add_row(f"On the device ({found.device})", size_text(plan.device_bytes), "")
    _add_rows(table, device_rows(found))
    table.add_row("In host memory", size_text(plan.host_bytes), _host_note(plan))
    _add_rows(table, host_rows(plan))
    table.add_section()
    _add_rows(table, speed_rows(found))
    table.add_section()
    _add_rows(table, assumption_rows(found))
    console.print(table)
    console.print(advice(found))


def device_rows(found: "Preview") -> list[Row]:
    """Return the rows that list the contents of device memory."""
    from engine.kv.page_pool import PAGE

    plan, method = found.scheme.plan, found.scheme.method
    counts = Counter(plan.tiers)
    away = len(plan.tiers) - counts["resident"]
    rows = [
        ("resident units", plan.resident_bytes, f"{counts['resident']} of {len(plan.tiers)}"),
        ("ring", plan.ring_bytes, f"{plan.ring_slots} slots for {away} units" if away else ""),
        ("draft", plan.draft_bytes, method),
        (
            "KV pages",
            plan.kv_bytes,
            f"{plan.num_pages * PAGE} tokens, {plan.max_sequences} sequences at once",
        ),
        ("recurrent states", plan.state_bytes, _states_note(found)),
        ("activations", plan.activation_bytes, f"passes of up to {plan.max_rows} rows"),
        ("other", plan.other_bytes, "norms, expanded weights, CUDA graphs, workspaces"),
        ("runtime", plan.memory.device_runtime, "used by CUDA itself"),
    ]
    return _format_rows(rows)


def _states_note(found: "Preview") -> str:
    plan, rows = found.scheme.plan, found.scheme.bounds.budget
    nodes = f", {plan.num_nodes} drafted rows" if plan.num_nodes else ""
    return f"{plan.num_states} with trees of {rows} rows, {plan.stored_states} of prefixes{nodes}"


def host_rows(plan: "Plan") -> list[Row]:
    """Return the rows that list the contents of host memory."""
    from engine.kv.page_pool import PAGE

    counts = Counter(plan.tiers)
    rows = [
        ("units in RAM", plan.ram_unit_bytes, f"{counts['ram']} units"),
        ("staging", plan.staging_bytes, "between disk and device"),
        ("idle KV", plan.host_kv_bytes, f"{plan.host_pages * PAGE} tokens"),
        ("embedding", plan.embedding_bytes, "in the page cache: read from the file row by row"),
        ("while loading", plan.making_bytes, "to make or read 4-bit copies, or to code weights"),
        ("compiled code", plan.memory.code, "for the CPU, when it is first needed"),
        ("runtime", plan.memory.host_runtime, "the process without weights"),
    ]
    return _format_rows(rows)


def speed_rows(found: "Preview") -> list[Row]:
    """Return the rows with the forecast speeds for one user and for several."""
    from engine.planning.forecast import PROMPT

    own = found.scheme.forecast
    link, walk = own.link_seconds * 1e3, own.pass_seconds * 1e3
    cycle = f"pass {walk:.0f} ms (link {link:.0f} ms), draft {own.draft_seconds * 1e3:.0f} ms"
    prompt = min(PROMPT, found.scheme.demand.context_length)
    return [
        ("1 user", f"{own.tokens_per_second:.1f} tokens/s", cycle),
        (_users(own.users), f"{own.tokens_per_second_all:.1f} tokens/s", _users_note(own)),
        ("first token", f"{own.first_token_seconds:.2f} s", f"of a prompt of {prompt:,} tokens"),
    ]


def _users(count: int) -> str:
    return "1 user" if count == 1 else f"{count} users"


def _users_note(own: "Forecast") -> str:
    """Return a note on the users of the second speed, who may be fewer than were asked about."""
    if own.users_asked <= own.users:
        return "together"
    return f"together; the other {own.users_asked - own.users} wait"


def assumption_rows(found: "Preview") -> list[Row]:
    """Return the rows with what the forecast depends on.

    How stored weights travel is said in a few words: the log and the JSON have it in full.
    """
    from engine.planning.preview import IN_CHECKPOINT, STORED

    rows = []
    for one in found.assumptions:
        figure, note = one.figure, one.source
        if one.what == STORED and one.source == IN_CHECKPOINT:
            figure, note = "expanded when read", one.figure.partition(": ")[2]
        elif one.what == STORED:
            figure, note = _form(found), one.figure
        rows.append((one.what, figure, shorten(note, LONGEST_NOTE, placeholder=" ...")))
    return rows


def _form(found: "Preview") -> str:
    """Return in a few words in which form packed weights travel."""
    if not found.scheme.packed:
        return "expanded at load"
    is_resident = set(found.scheme.plan.tiers) == {"resident"}
    return "packed on the device" if is_resident else "travel packed"


def advice(found: "Preview") -> str:
    """Return a sentence about the single change that would help most."""
    if not found.gains:
        return "\nNo single change would make it much faster."
    best = found.gains[0]
    return f"\nWhat would help most: {best.change} -> {best.factor:.1f}x"


def _host_note(plan: "Plan") -> str:
    return (
        "" if plan.memory.has_own_memory else "the device's share comes on top: it is the same RAM"
    )


def _format_rows(rows: list[tuple[str, int, str]]) -> list[Row]:
    """Return the rows that are not empty, with their bytes as text."""
    from engine.planning.footprint import size_text

    return [(what, size_text(nbytes), note) for what, nbytes, note in rows if nbytes]


def _add_rows(table: Table, rows: list[Row]) -> None:
    for what, figure, note in rows:
        table.add_row(f"  {what}", figure, note, style="not bold")
