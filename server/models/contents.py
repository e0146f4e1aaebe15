"""What is known of the bytes of a loaded model's weights, by which peers compare them."""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from engine.errors import ModelError
from engine.messages import ModelInfo
from engine.weights.contents import ContentsReader
from server.logs.context import create_background_task

log = logging.getLogger("understudy")

BUSY_SECONDS = 0.5  # between two pieces while requests run


class Contents:
    """The digest of all bytes of a model's weight files, which is read in idle time.

    Attributes:
        share: of the bytes, what has been read.
    """

    def __init__(self) -> None:
        self._digest = ""
        self.share = 0.0
        self._task: asyncio.Task[None] | None = None

    def name(self, form: str) -> str:
        """Return a digest of the bytes and of how they are used; "" while it is not known.

        Args:
            form: `ModelInfo.form`.
        """
        if not self._digest or not form:
            return ""
        return hashlib.sha256(f"{self._digest}\0{form}".encode()).hexdigest()[:24]

    def begin(
        self, info: ModelInfo, is_idle: Callable[[], bool], is_over: Callable[[], bool]
    ) -> None:
        """Begin to read the files; only the first call counts.

        Args:
            is_idle: whether no request runs. While some do, little is read.
            is_over: whether the model is not needed any more.
        """
        if self._task is None:
            reading = self._read(info, is_idle, is_over)
            self._task = create_background_task(reading, f"read the files of {info.model_id}")

    async def _read(
        self, info: ModelInfo, is_idle: Callable[[], bool], is_over: Callable[[], bool]
    ) -> None:
        try:
            folder = Path(info.tokenizer_path)
            reader = await asyncio.to_thread(ContentsReader, folder, info.revision)
            found = await asyncio.to_thread(reader.recall)
            pieces = reader.pieces()
            while found is None:
                if is_over():
                    return
                if not is_idle():
                    await asyncio.sleep(BUSY_SECONDS)
                found = await asyncio.to_thread(next, pieces)
                self.share = reader.num_read / max(1, reader.num_bytes)
        except (OSError, ModelError) as error:
            log.warning("the weights cannot be compared with those of peers: %s", error)
            return
        self._digest, self.share = found, 1.0
