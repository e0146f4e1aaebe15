"""Statistics of a loaded model's engine: its passes are counted as metrics and logged.

A pass is one forward pass of the target model. The link is the connection (such as PCIe) over which
weights are copied to the device during a pass.
"""

import logging

from engine.kv_disk_stats import KVDiskStats
from engine.messages import Audited, ModelInfo, PassStats, WeightsChecked
from engine.moves import Replanned
from server.metrics.passes import PassHistory, Sums
from server.metrics.prometheus import Metrics

log = logging.getLogger("understudy")

LEAST_BUSY_MS = 1.0  # of the link in a pass whose rate counts: shorter times are not exact

SMALL_GBPS = 0.1  # a lower rate is shown in MB/s


class EngineStatistics:
    """The callbacks of one engine, which count and log what it reports.

    Attributes:
        history: the passes so far.
        limit_gbps: the highest rate that the link has reached while it was busy: in the measurement
            of the load, or in a pass. 0: no link is used.
    """

    def __init__(self, model: str, metrics: Metrics) -> None:
        self.history = PassHistory()
        self.limit_gbps = 0.0
        self._model = model
        self._metrics = metrics.engines

    def loaded(self, info: ModelInfo) -> None:
        """Begin to count for a model that was just loaded."""
        self.limit_gbps = info.link_gbps
        self._metrics.begin(self._model)

    def passed(self, stats: PassStats) -> None:
        """Count and log the statistics of a finished pass."""
        self.history.add(stats)
        if self.limit_gbps and stats.link_ms >= LEAST_BUSY_MS:
            # A machine that was busy during the load has measured too little.
            self.limit_gbps = max(self.limit_gbps, stats.link_bytes / stats.link_ms / 1e6)
        self._metrics.count_pass(self._model, stats)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s: %s", self._model, self._summary(stats))

    def audited(self, audited: Audited) -> None:
        """Count and log the result of an audit, in which a finished answer was checked."""
        self._metrics.count_audit(self._model, audited)
        log.debug(
            "%s: audit: %d of %d tokens differ",
            self._model,
            audited.mismatches,
            audited.positions,
        )

    def checked(self, checked: WeightsChecked) -> None:
        """Count and log the result of a check of the packed weights."""
        self._metrics.count_weights_check(self._model, checked)
        if checked.repaired:
            log.warning("%s: %d damaged units packed again", self._model, checked.repaired)
        if checked.unrepaired:
            log.error("%s: damaged units that cannot be packed again", self._model)

    def replanned(self, moved: Replanned) -> None:
        """Count that units of weights have moved; the engine has logged it."""
        self._metrics.count_replan(self._model, moved)

    def kept(self, stats: KVDiskStats) -> None:
        """Count what was read and written of the idle KV on disk."""
        self._metrics.count_kv_disk(self._model, stats)

    def restarted(self) -> None:
        """Count a restart of the engine's process, which died."""
        self._metrics.count_restart(self._model)

    def resumed(self) -> None:
        """Count a stream that goes on in another process, after its own one died."""
        self._metrics.count_resumed(self._model)

    def link_since(self, before: Sums) -> str:
        """Return the link's mean bandwidth in the passes since `before`, as text for the log.

        Returns "" if no bytes were moved since.
        """
        since = self.history.sums.since(before)
        seconds = since.seconds + since.draft  # weights travel while drafting too
        if since.link_bytes <= 0 or seconds <= 0:
            return ""
        return f", link {self._of_limit(since.link_bytes / seconds / 1e9)}"

    def _of_limit(self, gbps: float) -> str:
        shown = f"{gbps:.2f}" if gbps >= SMALL_GBPS else f"{1e3 * gbps:.1f} MB/s"
        return f"{shown} of {self.limit_gbps:.2f} GB/s"

    def _summary(self, stats: PassStats) -> str:
        drafted, accepted = (
            sum(rows for _, rows in by) for by in (stats.drafted_by, stats.accepted_by)
        )
        return (
            f"pass: {stats.rows} rows ({stats.prompt_rows} of prompts) of {stats.sequences} "
            f"sequences, {stats.accepted} tokens, {accepted} of {drafted} drafted rows accepted, "
            f"draft {stats.draft_ms:.1f} ms (and {stats.ahead_ms:.1f} ahead), "
            f"pass {stats.pass_ms:.1f} ms, waited {stats.copy_stall_ms:.1f} for weights, "
            f"host {stats.host_ms:.1f}, link {self._of_limit(stats.link_gbps)}, "
            f"{stats.free_pages} free pages, {stats.waiting} waiting"
        )
