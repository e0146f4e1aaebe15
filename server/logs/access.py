"""The access log: one line for each request, when its answer has ended."""

import logging

from engine.errors import escaped
from engine.log_lines import of_request
from server.metrics.measurement import Measurement

LOGGER = "understudy.access"
OFF = logging.CRITICAL + 1
LONGEST_PATH = 200  # characters
DIGITS = 6  # after the point of seconds
REPORTS = "/v1/peer"  # asked for every second by each server that has this one as a peer

log = logging.getLogger(LOGGER)
log.setLevel(OFF)  # until the settings say otherwise


def log_access(measured: Measurement) -> None:
    """Write the line of a request that has ended. It has nothing of queries, headers or bodies."""
    if not log.isEnabledFor(logging.INFO) or _is_routine(measured):
        return
    fields = access_fields(measured)
    text = (
        f'{fields["client"]} "{fields["method"]} {fields["path"]}" {fields["status"]} '
        f"in {measured.seconds:.3f} s"
    )
    if measured.model:
        text += f", {fields['model']}"
    if measured.totals is not None:
        text += f", {fields['prompt_tokens']} tokens in, {fields['completion_tokens']} out"
    if measured.route:
        text += f", {fields['outcome']}"
    log.info("%s", text, extra={"fields": fields, **of_request(measured.request_id)})


def _is_routine(measured: Measurement) -> bool:
    return measured.path == REPORTS and measured.status == 200


def access_fields(measured: Measurement) -> dict[str, object]:
    """Return what is logged of a request; texts are printable.

    `status` is what the client saw: that of the error with which a stream ended, and 499 where the
    client left. `prompt_tokens` and the fields after it are there for answers that were begun.
    """
    path = measured.path
    if len(path) > LONGEST_PATH:
        path = f"{path[:LONGEST_PATH]}..."
    fields: dict[str, object] = {
        "client": escaped(measured.client),
        "method": escaped(measured.method),
        "path": escaped(path),
        "status": measured.status,
        "seconds": round(measured.seconds, DIGITS),
        "outcome": measured.outcome,
    }
    if measured.model:
        fields["model"] = escaped(measured.model)
    if measured.totals is not None:
        counts = measured.totals.counts()
        fields["prompt_tokens"] = counts["prompt_tokens"]
        fields["completion_tokens"] = counts["completion_tokens"]
        fields["queue_seconds"] = measured.wait.milliseconds / 1e3
    if measured.first_token_s is not None:
        fields["first_token_seconds"] = round(measured.first_token_s, DIGITS)
    return fields
