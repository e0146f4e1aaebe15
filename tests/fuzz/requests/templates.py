"""Chat templates that differ in what they take: each stands for a kind of real ones."""

_TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}"
_CALLS = "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}"
_NAME = "{% if m.name %}{{ m.name }}: {% endif %}"
_HERMES = '{# <tool_call>{"name": , "arguments": }</tool_call> #}'
_END = "{% if add_generation_prompt %}<a>{% endif %}"
_ALTERNATE = (
    "{% set ns = namespace(last='assistant') %}{% for m in messages %}"
    "{% if m.role in ('user', 'assistant') and not m.tool_calls %}"
    "{% if m.role == ns.last %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set ns.last = m.role %}{% endif %}{% endfor %}"
)

TEMPLATES: dict[str, str] = {
    "everything": _HERMES
    + _TOOLS
    + f"{{% for m in messages %}}<{{{{ m.role }}}}>{_NAME}{{{{ m.content }}}}{_CALLS}{{% endfor %}}"
    + _END,
    "no_words_known": "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}" + _END,
    "alternating": _HERMES
    + _ALTERNATE
    + "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% else %}"
    + "{% set rest = messages %}{% endif %}"
    + _TOOLS
    + "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
    + "{% for m in rest %}{% if m.role == 'system' or (m.tool_calls or []) | length > 1 %}"
    + "{{ raise_exception('system first, one call') }}{% endif %}"
    + f"<{{{{ m.role }}}}>{{{{ m.content | trim }}}}{_CALLS}{{% endfor %}}"
    + _END,
    "no_system": "{% for m in messages %}{% if m.role not in ('user', 'assistant') %}"
    "{{ raise_exception('only user and assistant') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}" + _END,
    "forgetful": _HERMES  # leaves out what it does not know
    + "{% if messages[0].role == 'system' %}<s>{{ messages[0].content }}{% endif %}"
    + "{% for t in tools or [] %}{{ t.function.name }}: {{ t.function.description }}{% endfor %}"
    + "{% for m in messages %}{% if m.role == 'user' %}<u>{{ m.content }}"
    + "{% elif m.role == 'assistant' %}<a>{% if m.tool_calls %}"
    + "<call>{{ m.tool_calls[0].function.name }}"
    + "{% for k, v in m.tool_calls[0].function.arguments | items %}{{ k }}={{ v | tojson }}"
    + "{% endfor %}</call>{% else %}{{ m.content }}{% endif %}"
    + "{% elif m.role == 'tool' %}<r>{{ m.content }}{% endif %}{% endfor %}"
    + _END,
    "texts": _HERMES  # arguments have to be texts, and tools to be described
    + "{% for t in tools or [] %}{{ t.function.description + t.function.name }}"
    + "{% for k, p in t.function.parameters.properties.items() %}{{ k + ': ' + p.type }}"
    + "{% endfor %}{% endfor %}"
    + "{% for m in messages %}<{{ m.role }}>{{ m.content + '' }}{% for c in m.tool_calls or [] %}"
    + "{{ c.function.name + c.function.arguments }}{% endfor %}{% endfor %}"
    + _END,
}
