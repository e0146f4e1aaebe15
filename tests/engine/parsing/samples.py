"""Answers as models of every family write them, and what they mean.

The texts are what the families' own chat templates write for a message with the same calls. The
first sample of a format has two calls: `look_up` with arguments of every type, and `now` without
any. In the others, `{LEAD}` stands for text or reasoning.
"""

from typing import NamedTuple

ARGUMENTS = {
    "key": 'tea "é"\n  <b>',
    "n": 3,
    "f": 1.5,
    "b": True,
    "o": {"x": [1, {"y": "z"}]},
    "l": ["a", "b"],
    "z": None,
}
JSON = (
    '{"key": "tea \\"é\\"\\n  <b>", "n": 3, "f": 1.5, "b": true, "o": {"x": [1, {"y": "z"}]}, '
    '"l": ["a", "b"], "z": null}'
)
KEY = '{"key": "tea"}'


class Sample(NamedTuple):
    """How a format writes two calls, one call, and an answer without calls.

    Args:
        two: a call of `look_up` with `ARGUMENTS`, and one of `now`.
        one: a call of `look_up` with `KEY`.
        unknown: a call of `unknown`, which is no tool, with `KEY`.
        text: an answer that says "Sure."
        lead: text "Sure." before a call; "" if the format has none.
        thought: reasoning "Hm." before a call; "" if the format has none.
    """

    two: str
    one: str
    text: str = "Sure."
    lead: str = "Sure."
    thought: str = ""

    @property
    def unknown(self) -> str:
        return self.one.replace("look_up", "unknown")


def _function(body: str, name: str = "look_up") -> str:
    return f"<tool_call>\n<function={name}>\n{body}</function>\n</tool_call>"


def _lines(key: str, value: str) -> str:
    return f"<parameter={key}>\n{value}\n</parameter>\n"


def _joined(template: str, words: tuple[str, str, str] = ("true", "null", '"')) -> str:
    true, null, _ = words
    values = {
        "key": ARGUMENTS["key"],
        "n": "3",
        "f": "1.5",
        "b": true,
        "o": '{"x": [1, {"y": "z"}]}',
        "l": '["a", "b"]',
        "z": null,
    }
    return "".join(
        template.replace("KEY", key).replace("VALUE", str(value)) for key, value in values.items()
    )


def _dsml(section: str, *calls: tuple[str, str]) -> str:
    bodies = "".join(
        f'<｜DSML｜invoke name="{name}">\n{body}</｜DSML｜invoke>\n' for name, body in calls
    )
    return f"<｜DSML｜{section}>\n{bodies}</｜DSML｜{section}>"


def _dsml_key(key: str, value: str, is_string: str = "true") -> str:
    return f'<｜DSML｜parameter name="{key}" string="{is_string}">{value}</｜DSML｜parameter>\n'


_DSML_ALL = _joined(_dsml_key("KEY", "VALUE", "false")).replace(
    'name="key" string="false"', 'name="key" string="true"'
)
_GLM = "<arg_key>KEY</arg_key>\n<arg_value>VALUE</arg_value>\n"
_HY = _GLM.replace("_key>", "_key:opensource>").replace("_value>", "_value:opensource>")
_K3_TYPES = {
    "key": "string",
    "n": "number",
    "f": "number",
    "b": "boolean",
    "o": "object",
    "l": "array",
    "z": "null",
}
_K3 = _joined('<|open|>argument key="KEY" type="TYPE:KEY"<|sep|>VALUE<|close|>argument<|sep|>')
for _key, _type in _K3_TYPES.items():
    _K3 = _K3.replace(f"TYPE:{_key}", _type)
_M = "]<]minimax[>["
_M3 = (
    f'{_M}<key>tea "é"\n  <b>{_M}</key>{_M}<n>3{_M}</n>{_M}<f>1.5{_M}</f>{_M}<b>true{_M}</b>'
    f"{_M}<o>{_M}<x>{_M}<item>1{_M}</item>{_M}<item>{_M}<y>z{_M}</y>{_M}</item>{_M}</x>{_M}</o>"
    f"{_M}<l>{_M}<item>a{_M}</item>{_M}<item>b{_M}</item>{_M}</l>{_M}<z>null{_M}</z>"
)
_OBJECTS = f'{{"name": "look_up", "arguments": {JSON}}}, {{"name": "now", "arguments": {{}}}}'
_OBJECT = f'{{"name": "look_up", "arguments": {KEY}}}'
_PYTHON = (
    "look_up(key='tea \"é\"\n  <b>', n=3, f=1.5, b=True, o={\"x\": [1, {'y': 'z'}]}, "
    "l=['a', 'b'], z=None)"
)
_THINK = "<think>\nHm.\n</think>\n\n"
_SECTION = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
_ATEM = '<atem:parameter name="KEY">VALUE</atem:parameter>\n'


def _kimi(name: str, index: int, arguments: str) -> str:
    head = f"<|tool_call_begin|>functions.{name}:{index}<|tool_call_argument_begin|>"
    return f"{head}{arguments}<|tool_call_end|>"


def _solar(name: str, arguments: str) -> str:
    head = f"<|tool_call:begin|>a1b2c3d4e5<|tool_call:name|>{name}<|tool_call:args|>"
    return f"{head}{arguments}<|tool_call:end|>"


def _muse(name: str, body: str) -> str:
    call = f'<atem:invoke name="{name}">\n{body}</atem:invoke>\n'
    return f" to={name}<|message|><atem:function_calls>\n{call}</atem:function_calls>"


def _v3(name: str, arguments: str) -> str:
    head = f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n"
    return f"{head}```json\n{arguments}\n```<｜tool▁call▁end｜>"


def _v31(name: str, arguments: str) -> str:
    return f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>"


def _calls(*calls: str, separator: str = "") -> str:
    return f"<｜tool▁calls▁begin｜>{separator.join(calls)}<｜tool▁calls▁end｜>"


def _harmony(name: str, arguments: str) -> str:
    return f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}"


_HUNYUAN = Sample(
    "<tool_calls:opensource>\n<tool_call:opensource>look_up<tool_sep:opensource>\n"
    f"{_joined(_HY)}</tool_call:opensource>\n<tool_call:opensource>now<tool_sep:opensource>\n"
    "</tool_call:opensource>\n</tool_calls:opensource>",
    "<tool_calls:opensource>\n<tool_call:opensource>look_up<tool_sep:opensource>\n"
    + _HY.replace("KEY", "key").replace("VALUE", "tea")
    + "</tool_call:opensource>\n</tool_calls:opensource>",
    thought="<think:opensource>Hm.</think:opensource>",
)

SAMPLES: dict[str, Sample] = {
    "apertus": Sample(
        f'<|tools_prefix|>[{{"look_up": {JSON}}}, {{"now": {{}}}}]<|tools_suffix|>',
        f'<|tools_prefix|>[{{"look_up": {KEY}}}]<|tools_suffix|>',
    ),
    "apriel": Sample(
        f"<tool_calls>[{_OBJECTS}]</tool_calls>",
        f'<tool_calls>[{{"name": "look_up", "arguments": {KEY}, "id": "1"}}]</tool_calls>',
        text="Here are my reasoning steps:\nHm.\n[BEGIN FINAL RESPONSE]\nSure.[END FINAL RESPONSE]",
        thought="Here are my reasoning steps:\nHm.\n[BEGIN FINAL RESPONSE]\n",
    ),
    "command_r": Sample(
        f'<|START_ACTION|>[\n    {{"tool_call_id": "0", "tool_name": "look_up", "parameters": '
        f'{JSON}}},\n    {{"tool_call_id": "1", "tool_name": "now", "parameters": {{}}}}\n]'
        "<|END_ACTION|>",
        f'<|START_ACTION|>[{{"tool_name": "look_up", "parameters": {KEY}}}]<|END_ACTION|>',
        text="<|START_RESPONSE|>Sure.<|END_RESPONSE|>",
        thought="<|START_THINKING|>Hm.<|END_THINKING|>",
    ),
    "deepseek_v3": Sample(
        _calls(_v3("look_up", JSON), _v3("now", "{}"), separator="\n"),
        _calls(_v3("look_up", KEY)),
    ),
    "deepseek_v31": Sample(
        _calls(_v31("look_up", JSON), _v31("now", "{}")), _calls(_v31("look_up", KEY))
    ),
    "deepseek_v32": Sample(
        _dsml("function_calls", ("look_up", _DSML_ALL), ("now", "")),
        _dsml("function_calls", ("look_up", _dsml_key("key", "tea"))),
    ),
    "deepseek_v4": Sample(
        _dsml("tool_calls", ("look_up", _DSML_ALL), ("now", "\n")),
        _dsml("tool_calls", ("look_up", _dsml_key("key", "tea"))),
    ),
    "functionary_v31": Sample(
        f"<function=look_up>{JSON}</function><function=now>{{}}</function>",
        f"<function=look_up>{KEY}</function>",
    ),
    "functionary_v32": Sample(
        f"look_up\n{JSON}>>>now\n{{}}", f"look_up\n{KEY}", text="all\nSure.", lead="all\nSure.>>>"
    ),
    "gemma4": Sample(
        '<|tool_call>call:look_up{key:<|"|>tea "é"\n  <b><|"|>,n:3,f:1.5,b:true,'
        'o:{x:[1,{y:<|"|>z<|"|>}]},l:[<|"|>a<|"|>,<|"|>b<|"|>],z:None}<tool_call|>'
        "<|tool_call>call:now{}<tool_call|>",
        '<|tool_call>call:look_up{key:<|"|>tea<|"|>}<tool_call|>',
        thought="<|channel>thought\nHm.\n<channel|>",
    ),
    "generic": Sample(
        f'<tool_call>\n{{"name": "look_up", "arguments": {JSON}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        _OBJECT,
        lead="",
    ),
    "gigachat": Sample(
        f'<|function_call|>{{"name": "look_up", "arguments": {JSON}}}'
        '<|function_call|>{"name": "now", "arguments": {}}',
        f"<|function_call|>{_OBJECT}<|message_sep|>",
    ),
    "glm": Sample(
        f"<tool_call>look_up\n{_joined(_GLM)}</tool_call>\n<tool_call>now\n</tool_call>",
        "<tool_call>look_up<arg_key>key</arg_key><arg_value>tea</arg_value></tool_call>",
    ),
    "granite": Sample(
        f"<|tool_call|>[{_OBJECTS}]",
        f"<|tool_call|>[{_OBJECT}]",
        text="<think>Hm.</think><response>Sure.</response>",
        thought="<think>Hm.</think>",
    ),
    "harmony": Sample(
        f"{_harmony('look_up', JSON)}<|call|><|start|>assistant{_harmony('now', '{}')}<|call|>",
        f"{_harmony('look_up', KEY)}<|call|>",
        text="<|channel|>final<|message|>Sure.",
        lead="<|channel|>commentary<|message|>Sure.<|end|><|start|>assistant",
        thought="<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant",
    ),
    "hermes": Sample(
        f'<tool_call>\n{{"name": "look_up", "arguments": {JSON}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        f"<tool_call>\n{_OBJECT}\n</tool_call>",
    ),
    "hunyuan": _HUNYUAN,
    "hunyuan_plain": Sample(*(text.replace(":opensource", "") for text in _HUNYUAN)),
    "kimi_k2": Sample(
        _kimi("look_up", 0, JSON).join((_SECTION[0], "")) + _kimi("now", 1, "{}") + _SECTION[1],
        f"{_SECTION[0]}{_kimi('look_up', 0, KEY)}{_SECTION[1]}",
    ),
    "kimi_k3": Sample(
        f'<|open|>tools<|sep|><|open|>call tool="look_up" index="1"<|sep|>{_K3}<|close|>call<|sep|>'
        '<|open|>call tool="now" index="2"<|sep|><|close|>call<|sep|><|close|>tools<|sep|>',
        '<|open|>tools<|sep|><|open|>call tool="look_up" index="1"<|sep|><|open|>argument '
        'key="key" type="string"<|sep|>tea<|close|>argument<|sep|><|close|>call<|sep|>'
        "<|close|>tools<|sep|>"
        "<|close|>message<|sep|><|end_of_msg|>",
        text="<|open|>response<|sep|>Sure.<|close|>response<|sep|><|close|>message<|sep|>",
        lead="<|open|>response<|sep|>Sure.<|close|>response<|sep|>",
        thought="<|open|>think<|sep|>Hm.<|close|>think<|sep|>",
    ),
    "lfm2": Sample(
        f"<|tool_call_start|>[{_PYTHON}, now()]<|tool_call_end|>",
        '<|tool_call_start|>[look_up(key="tea")]<|tool_call_end|>',
    ),
    "llama3_json": Sample(
        f'{{"name": "look_up", "parameters": {JSON}}}; {{"name": "now", "parameters": {{}}}}',
        f'<|python_tag|>{{"name": "look_up", "parameters": {KEY}}}',
        lead="",
    ),
    "llama_pythonic": Sample(f"[{_PYTHON}, now()]", '[look_up(key="tea")]', lead=""),
    "minicpm5": Sample(
        '<function name="look_up"><param name="key"><![CDATA[tea "é"\n  <b>]]></param>'
        '<param name="n">3</param><param name="f">1.5</param><param name="b">True</param>'
        "<param name=\"o\">{'x': [1, {'y': 'z'}]}</param><param name=\"l\">['a', 'b']</param>"
        '<param name="z">None</param></function>\n<function name="now"></function>',
        '<function name="look_up"><param name="key">tea</param></function>',
    ),
    "minimax_m1": Sample(
        f'<tool_calls>\n{{"name": "look_up", "arguments": {JSON}}}\n'
        '{"name": "now", "arguments": {}}\n</tool_calls>',
        f"<tool_calls>\n{_OBJECT}\n</tool_calls>",
    ),
    "minimax_m2": Sample(
        '<minimax:tool_call>\n<invoke name="look_up">\n'
        + _joined('<parameter name="KEY">VALUE</parameter>\n')
        + '</invoke>\n<invoke name="now">\n</invoke>\n</minimax:tool_call>',
        '<minimax:tool_call>\n<invoke name="look_up">\n<parameter name="key">tea</parameter>\n'
        "</invoke>\n</minimax:tool_call>",
    ),
    "minimax_m3": Sample(
        f'{_M}<tool_call>\n{_M}<invoke name="look_up">{_M3}{_M}</invoke>\n{_M}<invoke name="now">'
        f"{_M}</invoke>\n{_M}</tool_call>",
        f'{_M}<tool_call>\n{_M}<invoke name="look_up">{_M}<key>tea{_M}</key>{_M}</invoke>\n'
        f"{_M}</tool_call>",
    ),
    "mistral": Sample(
        f"[TOOL_CALLS]look_up[CALL_ID]abcdefghi[ARGS]{JSON}[TOOL_CALLS]now[ARGS]{{}}",
        f"[TOOL_CALLS] [{_OBJECT}]",
    ),
    "muse": Sample(
        f"{_muse('look_up', _joined(_ATEM))}<|eom|><|start|>assistant{_muse('now', '')}<|eot|>",
        f"{_muse('look_up', _ATEM.replace('KEY', 'key').replace('VALUE', 'tea'))}<|eot|>",
        text=" to=user<|message|>Sure.<|eot|>",
        lead=" to=user<|message|>Sure.<|eom|><|start|>assistant",
        thought=" to=self<|message|>Hm.<|eom|><|start|>assistant",
    ),
    "nemotron": Sample(f"<TOOLCALL>[{_OBJECTS}]</TOOLCALL>", f"<TOOLCALL>[{_OBJECT}]</TOOLCALL>"),
    "phi4_mini": Sample(
        f"<|tool_call|>[{_OBJECTS}]<|/tool_call|>", f"functools[{_OBJECT}]", lead="Sure. "
    ),
    "qwen3_coder": Sample(
        _function(_joined(_lines("KEY", "VALUE"), ("True", "None", "")))
        + "\n"
        + _function("", "now"),
        _function(_lines("key", "tea")),
    ),
    "seed_oss": Sample(
        "<seed:tool_call>\n<function=look_up>\n"
        + _joined("<parameter=KEY>VALUE</parameter>\n", ("True", "None", ""))
        + "</function>\n</seed:tool_call>\n<seed:tool_call>\n<function=now>\n</function>\n"
        "</seed:tool_call>",
        "<seed:tool_call>\n<function=look_up>\n<parameter=key>tea</parameter>\n</function>\n"
        "</seed:tool_call>",
    ),
    "solar_open": Sample(
        f"<|tool_calls|>{_solar('look_up', JSON)}{_solar('now', '{}')}<|calls|>",
        f"<|tool_calls|>{_solar('look_up', KEY)}<|calls|>",
        text="<|content|>Sure.<|end|>",
        lead="<|content|>Sure.<|end|><|begin|>assistant",
        thought="<|think|>Hm.<|end|><|begin|>assistant",
    ),
}
for _name, _sample in SAMPLES.items():  # the others' reasoning is in tags of its own
    if not _sample.thought and _name != "functionary_v32":
        SAMPLES[_name] = _sample._replace(thought=_THINK)
