"""Makes what test/chat.test.ts expects, with transformers.

    python3 -m venv VENV
    VENV/bin/pip install "transformers==5.18.0" jinja2
    VENV/bin/python test/chat/make.py

`cases.json` holds chats, templates of our own that use what templates of real models use, and the
text that transformers makes of each pair, or that it refuses.
"""

import json
from pathlib import Path

import transformers
from transformers.utils.chat_template_utils import render_jinja_template

HERE = Path(__file__).parent
TOKENS = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")

TEMPLATES = {
    "chatml": """{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "headers": """{{ bos_token }}
{%- set ns = namespace(system='', n=0) %}
{%- for m in messages if m['role'] == 'system' %}{% set ns.system = ns.system ~ m['content'] | trim %}{% endfor %}
{%- if tools is defined and tools is not none %}
    {{- '[tools]' + (tools | tojson) + '[/tools]' }}
    {%- for tool in tools %}
        {{- loop.index ~ '/' ~ loop.length ~ ':' ~ tool.function.name ~ '(' ~ tool['function']['parameters']['properties'].keys() | join(', ') ~ ')' }}
        {{- tool | tojson(indent=2) }}
    {%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- set ns.n = ns.n + 1 %}
    {{- '<|' ~ message.role | upper ~ '|' ~ ns.n ~ '>' }}
    {%- if message.tool_calls is defined and message.tool_calls %}
        {%- for call in message.tool_calls -%}
            {{ call.name }}={{ call.arguments | tojson }}{% if not loop.last %};{% endif %}
        {%- endfor %}
    {%- elif message.content is string %}
        {{- message.content | trim }}
    {%- else %}
        {%- for part in message.content %}{{ part.text if part.type == 'text' else raise_exception('Only text, not ' + part.type) }}{% endfor %}
    {%- endif %}
    {{- eos_token }}
{%- endfor %}
{%- if ns.system %}{{ '\\n[system: ' + ns.system + ']' }}{% endif %}
{%- if add_generation_prompt %}{{ '<|ASSISTANT|' ~ (ns.n + 1) ~ '>' }}{% endif %}
""",
    "turns": """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must take turns: user, assistant, user, …') }}
{% endif %}
{% if message['role'] == 'user' %}
[INST] {{ message['content'] }} [/INST]
{% else %}
{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}

{% endif %}
{% endfor %}
{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}""",
    "macros": """{% macro part(role, text, last=false) %}
  {% set clean = text.strip().split('</think>')[-1].lstrip('\\n') %}
  {{- '(' + role.capitalize() + ') ' + clean + ('.' if last else ',') }}
{% endmacro %}
{% for i in range(messages | length) %}
{% set m = messages[i] %}
{{ part(m.role, m.content, i == messages|length - 1) | replace('a', 'A') }}
{% endfor %}
{% for k, v in messages[0].items() %}{{ k }}:{{ v | length }} {% endfor %}
{{ messages[1:] | map(attribute='role') | list | length }}{{ messages[::-1][0].role }}
{{ 7 // 2 }} {{ 2 * 3.5 }} {{ 7 % 3 }} {{ 'y' if 1 == 1.0 and 'x' in 'xyz' and not false }} {{ missing }}""",
}

USER = dict(role="user", content="Hello! <b>é</b> \"quoted\" 日本")
CHATS = {
    "one": [USER],
    "system": [dict(role="system", content=" Talk like a sailor. \U0001f600"), USER],
    "long": [
        USER,
        dict(role="assistant", content="<think>hm</think>\n\nAye.\n"),
        dict(role="user", content="  And\nnow?  "),
    ],
    "wrong": [dict(role="assistant", content="I begin."), dict(role="assistant", content="Again.")],
    "parts": [dict(role="user", content=[dict(type="text", text="a "), dict(type="text", text="b")])],
    "image": [dict(role="user", content=[dict(type="image", url="x")])],
    "calls": [
        USER,
        dict(
            role="assistant",
            content=None,
            tool_calls=[
                dict(name="look", arguments=dict(at="sea", far=True, n=[1, 2.5, None])),
                dict(name="wait", arguments={}),
            ],
        ),
        dict(role="tool", content='{"seen": "whale"}'),
    ],
}
TOOLS = [
    dict(
        type="function",
        function=dict(
            name="look",
            description="Looks <far> & 'near'.",
            parameters=dict(type="object", properties=dict(at=dict(type="string"), far={})),
        ),
    )
]

PAIRS = [
    *(("chatml", chat, {}) for chat in ("one", "system", "long")),
    ("chatml", "long", dict(add_generation_prompt=False)),
    *(("headers", chat, {}) for chat in ("one", "system", "long", "parts", "image", "calls")),
    ("headers", "calls", dict(tools=TOOLS)),
    *(("turns", chat, {}) for chat in ("one", "long", "wrong", "system")),
    ("turns", "one", dict(enable_thinking=False)),
    *(("macros", chat, {}) for chat in ("one", "long")),
    *((name, "wrong", dict(continue_final_message=True)) for name in ("chatml", "headers")),
    *((name, "long", dict(continue_final_message=True)) for name in ("chatml", "headers")),
]


def rendered(template, chat, options):
    settings = dict(add_generation_prompt="continue_final_message" not in options)
    try:
        texts, _ = render_jinja_template(
            conversations=[CHATS[chat]],
            chat_template=TEMPLATES[template],
            **{**settings, **TOKENS, **options},
        )
    except Exception as error:
        return dict(error=str(error))
    return dict(text=texts[0])


def main():
    cases = [
        dict(template=t, chat=c, options=o, **rendered(t, c, o)) for t, c, o in PAIRS
    ]
    out = dict(
        transformers=transformers.__version__,
        tokens=TOKENS,
        tools=TOOLS,
        templates=TEMPLATES,
        chats=CHATS,
        cases=cases,
    )
    text = json.dumps(out, indent=1, ensure_ascii=False)
    (HERE / "cases.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
