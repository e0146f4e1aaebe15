"""`understudy plan`: its output from config.json alone, and its exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.planning import probe
from server.cli import main
from server.config import files

Capture = pytest.CaptureFixture[str]

# the configuration of Qwen2.5-7B
CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
}
GIB = 1 << 30
CARD = ["--device-memory", "8GiB", "--ram", "24GiB", "--link-gbps", "25"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a model folder with only config.json, and hide the user's configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("UNDERSTUDY_CONFIG", raising=False)
    (tmp_path / "packaged").mkdir()
    monkeypatch.setattr(files, "packaged_folder", lambda: tmp_path / "packaged")
    made = tmp_path / "seven-b"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(CONFIG))
    return made


def planned(capsys: Capture, *arguments: str) -> dict[str, Any]:
    assert main.main(["plan", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_table_lists_memory_speeds_and_assumptions(capsys: Capture, folder: Path) -> None:
    assert main.main(["plan", str(folder), *CARD]) == 0
    out = capsys.readouterr().out
    assert "seven-b (qwen2, from its config.json alone)" in out
    for word in ("ring", "KV pages", "units in RAM", "runtime", "1 user", "first token"):
        assert word in out, word
    assert "25 GB/s" in out and "as asked" in out and "assumed" in out
    assert "What would help most: " in out
    assert max(len(line) for line in out.splitlines()) <= 100


def stored_in_blocks(folder: Path, *kinds: str) -> None:
    """Let the configuration say that the layers' matrices are stored in these types of blocks."""
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    types = {
        f"blk.{layer}.{part}.weight": kinds[index % len(kinds)]
        for layer in range(28)
        for index, part in enumerate(parts)
    }
    stored = {"quant_method": "gguf", "architecture": "qwen2", "tensors": types}
    (folder / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": stored}))


def test_the_row_of_stored_weights_is_short_and_json_has_the_whole(
    capsys: Capture, folder: Path
) -> None:
    kinds = ("Q2_K", "Q3_K", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q8_0")
    stored_in_blocks(folder, *kinds)
    slow = [*CARD, "--link-gbps", "4"]  # over which packed weights are the fastest
    assert main.main(["plan", str(folder), *slow]) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = (index for index, line in enumerate(lines) if "stored weights" in line)
    (end,) = (index for index, line in enumerate(lines) if "  expanding  " in line)
    assert "travel packed" in lines[row] and end - row <= 2
    rows = {one["what"]: one for one in planned(capsys, str(folder), *slow)["assumptions"]}
    assert rows["stored weights"]["figure"] == ", ".join(kinds)
    assert "because the forecast is" in rows["stored weights"]["source"]


@pytest.mark.parametrize(
    ("packed", "link", "advised"),
    [
        ("false", "4", ["stream.packed: false -> true"]),
        ("true", "4", []),
        (None, "4", []),
        ("true", "25", ["stream.packed: true -> false"]),  # expanding takes longer than the link
        ("false", "25", []),
    ],
)
def test_the_other_form_of_packed_weights_is_advised_where_it_is_faster(
    packed: str | None, link: str, advised: list[str], capsys: Capture, folder: Path
) -> None:
    stored_in_blocks(folder, "Q4_K")
    models = folder.parent / "configs" / "models"
    models.mkdir(parents=True)
    stream = "" if packed is None else f"stream: {{packed: {packed}}}\n"
    text = f'target: {{source: "{folder}"}}\ndraft: {{method: none}}\n{stream}'
    (models / "mine.yaml").write_text(text)
    changes = [
        gain["change"] for gain in planned(capsys, "mine", *CARD, "--link-gbps", link)["gains"]
    ]
    assert [change for change in changes if change.startswith("stream.packed")] == advised


def test_a_size_without_its_unit_is_refused_with_an_example(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main.main(["plan", "demo", "--device-memory", "8"])
    assert "'8' must be from 1 MiB to 1 PiB; write for example \"8GiB\"" in capsys.readouterr().err


def test_the_plan_fits_the_requested_memory(capsys: Capture, folder: Path) -> None:
    found = planned(capsys, str(folder), *CARD)
    plan = found["plan"]
    assert plan["device_bytes"] <= 8 * GIB
    assert plan["host_bytes"] - plan["memory"]["host_runtime"] <= 24 * GIB + plan["embedding_bytes"]
    assert found["has_weights"] is False
    layer = 2 * (3584 * (3584 + 2 * 512 + 3584) + 3 * 3584 * 18944)  # without biases and norms
    *parts, head = found["unit_bytes"]
    assert len(parts) == 4 * 28 and sum(parts[:4]) == pytest.approx(layer, rel=1e-3)
    assert parts[1:4] == [2 * 3584 * 18944] * 3, "each matrix of the MLP is a part"
    assert head == pytest.approx(2 * 3584 * 152064, rel=1e-3)


def test_more_memory_or_a_faster_link_raises_the_forecast(capsys: Capture, folder: Path) -> None:
    def speed(device: str, link: str) -> float:
        asked = ["--device-memory", device, "--ram", "24GiB", "--link-gbps", link]
        found: float = planned(capsys, str(folder), *asked)["forecast"]["tokens_per_second"]
        return found

    small = speed("8GiB", "12")
    assert speed("8GiB", "25") > small
    assert speed("12GiB", "12") > small
    assert speed("32GiB", "12") == speed("32GiB", "25") > 2 * small, "nothing travels"


def test_the_gains_are_sorted_and_the_best_is_first(capsys: Capture, folder: Path) -> None:
    gains = planned(capsys, str(folder), *CARD)["gains"]
    factors = [gain["factor"] for gain in gains]
    assert factors == sorted(factors, reverse=True) and factors[0] > 1
    assert any(gain["change"] == "link: 25 GB/s -> 50 GB/s" for gain in gains)
    alone = planned(capsys, str(folder), "--device-memory", "8GiB", "--ram", "4GiB")
    assert alone["plan"]["tiers"]["disk"] > 0
    assert 0 < alone["plan"]["disk_unit_bytes"] < sum(alone["link_bytes"])
    assert any(gain["change"].startswith("memory.ram: 4 GiB -> ") for gain in alone["gains"])


def test_every_figure_of_the_machine_can_be_given(capsys: Capture, folder: Path) -> None:
    card = [str(folder), "--device-memory", "8GiB", "--ram", "4GiB"]
    assumed = planned(capsys, *card)
    machine = {"device_memory": 8 * GIB, "ram": 4 * GIB, "link_gbps": 25.0, "disk_gbps": 3.0}
    assert assumed["machine"] == {**machine, "device_gbps": 500.0}
    faster = planned(capsys, *card, "--disk-gbps", "6", "--device-gbps", "1000")
    assert faster["machine"] == {**machine, "disk_gbps": 6.0, "device_gbps": 1000.0}
    sources = {one["what"]: (one["figure"], one["source"]) for one in faster["assumptions"]}
    assert sources["disk"] == ("6 GB/s", "as asked")
    assert sources["device memory"] == ("1000 GB/s", "as asked")
    first, second = (plan["forecast"] for plan in (assumed, faster))
    assert second["link_seconds"] < first["link_seconds"]
    assert second["draft_step_seconds"] < first["draft_step_seconds"]


def test_the_model_file_has_the_limits_that_were_asked(capsys: Capture, folder: Path) -> None:
    """Serving it gives what was planned; the keys of the present file are kept."""
    models = folder.parent / "configs" / "models"
    models.mkdir(parents=True)
    (models / "mine.yaml").write_text(
        f'target: {{source: "{folder}"}}\naliases: [me]\nmemory: {{cache: 1GiB}}\n'
    )
    for name, more in (("mine", {"aliases": ["me"]}), (str(folder), {})):
        found = planned(capsys, name, "--device-memory", "8GiB", "--ram", "1536MiB")
        file = yaml.safe_load(found["file"])
        assert file.pop("memory") == {
            **({"cache": GIB} if more else {}),
            "device": "8GiB",
            "ram": "1536MiB",
        }
        draft = {"method": found["draft"]}
        assert file == {"target": {"source": str(folder)}, "draft": draft, **more}


def test_several_users_are_forecast_together(capsys: Capture, folder: Path) -> None:
    asked = [str(folder), "--device-memory", "16GiB", "--users", "2"]
    forecast = planned(capsys, *asked)["forecast"]
    assert forecast["users"] == forecast["users_asked"] == 2
    assert forecast["tokens_per_second"] < forecast["tokens_per_second_all"]


def test_users_beyond_those_that_run_at_once_are_told_to_wait(
    capsys: Capture, folder: Path
) -> None:
    asked = [str(folder), "--device-memory", "16GiB", "--users", "500"]
    forecast = planned(capsys, *asked)["forecast"]
    assert forecast["users_asked"] == 500 > forecast["users"]
    assert main.main(["plan", *asked]) == 0
    out = capsys.readouterr().out
    others = 500 - forecast["users"]
    assert f"together; the other {others} wait" in out


def test_a_model_that_cannot_fit_ends_with_2_and_the_reason(capsys: Capture, folder: Path) -> None:
    assert main.main(["plan", str(folder), "--device-memory", "2GiB"]) == 2
    error = capsys.readouterr().err
    assert "does not fit" in error and "too little" in error and "ring of 5 slots" in error
    assert main.main(["plan", str(folder), "--device-memory", "256MiB"]) == 2
    error = capsys.readouterr().err
    assert "--device-memory (of which the driver keeps some): 248.3 MiB is" in error
    assert "runtime 600.0 MiB" in error and "-" not in error.partition("too little")[2]


def test_without_options_this_machine_is_measured(
    capsys: Capture, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps({**CONFIG, **small, **heads}))
    found = planned(capsys, str(folder))
    assert found["device"] == "cpu"
    assert found["machine"]["device_gbps"] is None and "memory" not in yaml.safe_load(found["file"])
    timed = {entry["what"]: entry["source"] for entry in found["assumptions"]}
    assert timed["compute of 64 rows"].startswith("measured")
    with monkeypatch.context() as nothing:
        nothing.setattr(probe, "pass_times", lambda *_: probe.MeasuredPass())
        found = planned(capsys, str(folder))
    assert "compute of 64 rows" not in {entry["what"] for entry in found["assumptions"]}


def test_a_model_with_a_file_is_planned_by_its_id(capsys: Capture, folder: Path) -> None:
    models = folder.parent / "configs" / "models"
    models.mkdir(parents=True)
    text = f'target: {{source: "{folder}"}}\ndraft: {{method: none}}\ncontext_length: 4096\n'
    (models / "mine.yaml").write_text(text)
    found = planned(capsys, "mine", *CARD)
    assert (found["model_id"], found["draft"]) == ("mine", "none")
    assert found["plan"]["draft_bytes"] == 0
    assert found["forecast"]["tokens_per_pass"] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--device-memory", "big"],
        ["--device-memory", "1"],
        ["--ram", "\uff18GiB"],
        ["--ram", "2PiB"],
        ["--link-gbps", "0"],
        ["--link-gbps", "1e-9"],
        ["--link-gbps", "1_0"],
        ["--disk-gbps", "x"],
        ["--disk-gbps", "inf"],
        ["--users", "0"],
        ["--users", "2.5"],
        ["--users", "\u0668"],
    ],
)
def test_the_error_names_an_impossible_option(
    capsys: Capture, folder: Path, arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main.main(["plan", str(folder), *arguments])
    assert end.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_the_memory_of_a_card_belongs_to_a_card(capsys: Capture, folder: Path) -> None:
    assert main.main(["plan", str(folder), "--device-gbps", "500"]) == 1
    assert "--device-memory" in capsys.readouterr().err


def test_a_model_that_cannot_be_served_ends_with_1(capsys: Capture, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "mamba", "hidden_size": 64}))
    assert main.main(["plan", str(folder), *CARD]) == 1
    assert "mamba" in capsys.readouterr().err
    assert main.main(["plan", "some/model", *CARD]) == 1  # the tests run offline
    assert "config.json is not cached" in capsys.readouterr().err
