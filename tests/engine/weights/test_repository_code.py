"""Tests that code of a model repository never runs, and that no question is asked on stdin."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import ModelError
from engine.text.tokenizer import read_tokenizer
from engine.weights.family import read_config
from tests.engine.checkpoints import save_tiny

ROOT = Path(__file__).parents[3]
CODE = """
from pathlib import Path
(Path(__file__).parent / "ran").touch()
from transformers import PretrainedConfig
class OwnConfig(PretrainedConfig):
    model_type = "own"
"""
READ_BOTH = """
import sys
from pathlib import Path
from engine.errors import ModelError
from engine.text.tokenizer import read_tokenizer
from engine.weights.family import read_config
for read in (read_config, read_tokenizer):
    try:
        read(Path(sys.argv[1]))
    except ModelError as error:
        print(error)
"""


def repository(folder: Path) -> Path:
    """Write a model folder of an unknown family, with code that writes a file when it runs."""
    folder.mkdir()
    (folder / "own.py").write_text(CODE)
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def test_code_is_refused_by_name_whatever_stdin_is(tmp_path: Path) -> None:
    """transformers would ask on stdin and wait for the answer."""
    silent, writer = os.pipe()
    stdins = {"open": subprocess.PIPE, "closed": subprocess.DEVNULL, "silent": silent}
    command = [sys.executable, "-c", READ_BOTH]
    children = {
        kind: subprocess.Popen(
            [*command, str(repository(tmp_path / kind))],
            cwd=ROOT,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for kind, stdin in stdins.items()
    }
    for kind, child in children.items():
        answer = "y\n" if kind == "open" else None
        said, errors = child.communicate(answer, timeout=120)
        assert "model_type 'own'" in said and "tokenizer_class 'Own'" in said, errors
        assert said.count("is never run") == 2 and "trust_remote_code" not in said
        assert not (tmp_path / kind / "ran").exists()
    os.close(silent)
    os.close(writer)


def test_a_known_family_is_read_by_the_code_of_transformers(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text()) | {"auto_map": {"AutoConfig": "own.OwnConfig"}}
    path.write_text(json.dumps(values))
    (tmp_path / "own.py").write_text(CODE)
    assert read_config(tmp_path).model_type == "llama"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"model_type": "own"}', '{"auto_map": {}}', "[" * 100_000]
)
def test_the_error_of_a_bad_config_without_code_does_not_mention_code(
    text: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError) as caught:
        read_config(tmp_path)
    assert "is never run" not in str(caught.value)
    with pytest.raises(ModelError):
        read_tokenizer(tmp_path)
