"""Short chat templates that show calls as those of the named models do, where no package brings the real ones."""

HEAD = "{%- if tools %}<|system|>Functions: {{ tools | tojson }}\nCall them like this:\n"
MESSAGES = r"""
{%- for message in messages %}{%- if message.role == 'tool' %}<|result|>{{ message.content }}
{%- else %}<|{{ message.role }}|>
{%- if message.reasoning_content %}{{ '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{% endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}"""
TAIL = r"""
{%- endfor %}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}
{%- else %}{{ '<think>\n' }}{% endif %}{% endif %}"""

QWEN3_CODER = (
    HEAD
    + "<tool_call>\n<function=example>\n<parameter=example>\nvalue\n</parameter>\n</function>\n</tool_call>{% endif %}"
    + MESSAGES
    + r"""
{{- '\n<tool_call>\n<function=' + call.function.name + '>\n' }}
{%- for key, value in call.function.arguments | items %}
{{- '<parameter=' + key + '>\n' }}
{{- value | tojson if value is mapping or (value is sequence and value is not string) else value | string }}
{{- '\n</parameter>\n' }}
{%- endfor %}{{- '</function>\n</tool_call>' }}"""
    + TAIL
)


def _glm(line_end: str) -> str:
    """`line_end`: what the template of GLM 4.5 has, and that of 4.7 has not."""
    value = "{{ value if value is string else value | tojson }}"
    return (
        HEAD
        + f"<tool_call>NAME{line_end}<arg_key>KEY</arg_key>{line_end}<arg_value>VALUE</arg_value>{line_end}</tool_call>"
        + "{% endif %}"
        + MESSAGES
        + "{{ '\n<tool_call>' if not loop.first and LINE_END else '<tool_call>' }}{{ call.function.name ~ LINE_END }}"
        + "{%- for key, value in call.function.arguments | items %}<arg_key>{{ key }}</arg_key>"
        + f"{{{{- LINE_END }}}}<arg_value>{value}</arg_value>"
        + "{{- LINE_END }}{%- endfor %}</tool_call>"
        + TAIL
    ).replace("LINE_END", repr(line_end))


GLM_4_5, GLM_4_7 = _glm("\n"), _glm("")

DEEPSEEK_V3_1 = (  # shows no tools
    MESSAGES
    + "{%- if loop.first %}<｜tool▁calls▁begin｜>{% endif %}<｜tool▁call▁begin｜>{{ call.function.name }}<｜tool▁sep｜>"
    + "{{- call.function.arguments | tojson }}<｜tool▁call▁end｜>{% if loop.last %}<｜tool▁calls▁end｜>{% endif %}"
    + TAIL
)
KIMI_K2 = (
    HEAD
    + "{% endif %}"
    + MESSAGES
    + "{%- if loop.first %}<|tool_calls_section_begin|>{% endif %}<|tool_call_begin|>{{ call.id }}"
    + "<|tool_call_argument_begin|>{{ call.function.arguments | tojson }}<|tool_call_end|>"
    + "{%- if loop.last %}<|tool_calls_section_end|>{% endif %}"
    + TAIL
)


def _tagged(call: str, argument: str, *, block: tuple[str, str] = ("", ""), each: tuple[str, str] = ("", "")) -> str:
    """`block`: around all calls; `each`: around one. Arguments are as `tojson` has them, strings as they are."""
    value = "{{ value if value is string else value | tojson }}"
    begin, end = argument.split("VALUE")
    return (
        HEAD
        + f"{block[0]}{each[0]}{call.replace('ARGUMENTS', argument)}{each[1]}{block[1]}"
        + "{% endif %}"
        + MESSAGES
        + f"{{%- if loop.first %}}{{{{ {block[0]!r} }}}}{{% endif %}}{{{{ '' if loop.first else '\n' }}}}"
        + f"{{{{- {each[0] + call.split('ARGUMENTS')[0]!r} | replace('NAME', call.function.name) }}}}"
        + "{%- for key, value in call.function.arguments | items %}"
        + f"{{{{- {begin!r} | replace('KEY', key) | replace('KIND', 'true' if value is string else 'false') }}}}{value}"
        + f"{{{{- {end!r} }}}}{{%- endfor %}}{{{{- {call.split('ARGUMENTS')[1] + each[1]!r} }}}}"
        + f"{{%- if loop.last %}}{{{{ {block[1]!r} }}}}{{% endif %}}"
        + TAIL
    )


SEED = _tagged(
    "\n<function=NAME>\nARGUMENTS</function>\n",
    "<parameter=KEY>VALUE</parameter>\n",
    each=("<seed:tool_call>", "</seed:tool_call>"),
).replace("think>", "seed:think>")
MINIMAX_M2 = _tagged(
    '<invoke name="NAME">\nARGUMENTS</invoke>',
    '<parameter name="KEY">VALUE</parameter>\n',
    block=("<minimax:tool_call>\n", "\n</minimax:tool_call>"),
)
DEEPSEEK_V3_2 = _tagged(
    '<｜DSML｜invoke name="NAME">\nARGUMENTS</｜DSML｜invoke>',
    '<｜DSML｜parameter name="KEY" string="KIND">VALUE</｜DSML｜parameter>\n',
    block=("<｜DSML｜function_calls>\n", "\n</｜DSML｜function_calls>"),
)
DEEPSEEK_V4 = DEEPSEEK_V3_2.replace("function_calls", "tool_calls")
