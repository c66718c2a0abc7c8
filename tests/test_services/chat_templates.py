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
