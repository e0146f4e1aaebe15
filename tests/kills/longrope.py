"""The demo model with a rope whose frequencies change at a length that short answers cross."""

import json
import shutil
from pathlib import Path

ORIGINAL_LENGTH = 128
CONTEXT = 2048


def save_longrope(source: Path, folder: Path) -> Path:
    """Write a model to a folder, with longrope instead of its own rope, and return the folder."""
    folder.mkdir()
    for file in source.iterdir():
        shutil.copy(file, folder)
    config = json.loads((source / "config.json").read_text())
    half = config["head_dim"] // 2
    config["rope_parameters"] |= {
        "rope_type": "longrope",
        "short_factor": [1.0] * half,
        "long_factor": [1.0 + 0.02 * i for i in range(half)],
        "original_max_position_embeddings": ORIGINAL_LENGTH,
    }
    config["max_position_embeddings"] = CONTEXT
    (folder / "config.json").write_text(json.dumps(config))
    return folder
