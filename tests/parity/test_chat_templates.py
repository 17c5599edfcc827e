"""Conversations are the text, and the ids, that transformers makes of them by the same template."""

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

import eqxformer as ef
from tests.text.made import byte_level

USER, ANSWER = {"role": "user", "content": " What's <2 + 2> & é? "}, {"role": "assistant"}
SYSTEM = {"role": "system", "content": "Be brief.\n"}
CALL = {"function": {"name": "add", "arguments": {"b": [1, 2.5], "a": "ü<", "c": None}}}
TALKS = {
    "one": [USER],
    "with a system": [SYSTEM, USER],
    "longer": [SYSTEM, USER, {**ANSWER, "content": "4\n"}, {**USER, "content": "Sure?"}],
    "a thought": [USER, {**ANSWER, "content": "<think>\nhm\n</think>\n\n4"}, USER],
    "a call": [
        USER,
        {**ANSWER, "content": None, "tool_calls": [{"type": "function", **CALL}]},
        {"role": "tool", "content": "4", "name": "add"},
    ],
    "two answers": [USER, {**ANSWER, "content": "a"}, {**ANSWER, "content": "b"}],
}
NUMBER = {"type": "number", "description": "A <number>", "enum": [1, 2]}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds two numbers",
            "parameters": {
                "type": "object",
                "properties": {"a": NUMBER, "b": {"type": "array", "items": {"type": "number"}}},
                "required": ["a"],
            },
        },
    }
]

# Each has what the templates of a family have; none is theirs.
TEMPLATES = {
    "chatml": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- 'Functions:' }}
    {%- for tool in tools %}
        {{- '\\n' }}{{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' ~ messages[0]['content'] ~ '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages | length - 1, several=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.several and message.role == "user" %}
        {%- set ns.several = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == 'user') or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- if '</think>' in content and loop.index0 < ns.last %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' + content }}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '\\n<call>' }}{{- {'name': call.name, 'arguments': call.arguments} | tojson }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<result>' + content + '</result><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""",
    "brackets": """{% if messages[0]['role'] == 'system' %}
{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}
{% else %}{% set rest = messages %}{% set system = false %}{% endif %}
{% for message in rest %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must go user, assistant, user, assistant!') }}
{% endif %}
{% if loop.index0 == 0 and system != false %}
{% set content = '<<S>>\\n' + system + '\\n<</S>>\\n\\n' + message['content'] %}
{% else %}{% set content = message['content'] %}{% endif %}
{% if message['role'] == 'user' %}{{ bos_token + '[I] ' + content.strip() + ' [/I]' }}
{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}
{% endfor %}""",
    "headers": """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if tools is not none %}
    {{- "Environment: tools\\n" }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{{- "Today: " + date_string[:6] + "\\n\\n" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|h|>' + message['role'] + '<|/h|>\\n\\n' + message['content'] | trim + '<|end|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("One call at a time!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {%- for name, value in call.arguments | items %}
            {{- name + '="' + value | string + '"' }}{%- if not loop.last %}{{- ", " }}{%- endif %}
        {%- endfor %}
    {%- else %}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|h|>assistant<|/h|>\\n\\n' }}{%- endif %}""",
    "turns": """{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_prefix = messages[0]['content'] + '\n\n' -%}
    {%- endif -%}{%- set loop_messages = messages[1:] -%}
{%- else -%}{%- set first_prefix = "" -%}{%- set loop_messages = messages -%}{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<turn>' + role + '\n' + (first_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<image>' }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}{{ raise_exception("Invalid content type") }}{%- endif -%}
    {{ '</turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<turn>model\n' }}{%- endif -%}""",
    "macros": """{%- macro type_of(schema) %}
    {%- if schema.type == "array" %}{{- "list[" + type_of(schema['items']) + "]" }}
    {%- elif schema.type is string %}{{- {"number": "float"}.get(schema.type, "any") }}
    {%- else %}{{- "any" }}{%- endif %}
{%- endmacro -%}
{%- macro shown(message, mark='#') -%}
    {{ mark * 2 }} {{ message.role | upper }}:
    {{- (message.content or 'nothing') | replace('\n', ' ') }}
{%- endmacro -%}
{%- for tool in tools or [] %}
    {%- set f = tool.function %}
    {{- f.name + "(" }}
    {%- for name, schema in f.parameters.properties.items() %}
        {{- name + ": " + type_of(schema) }}
        {%- if name not in f.parameters.required %}{{- " = None" }}{%- endif %}
        {%- if not loop.last %}{{- ", " }}{%- endif %}
    {%- endfor %}
    {{- ") " ~ (f | tojson(sort_keys=true, separators=(',', ':'))) ~ "\n" }}
{%- endfor %}
{%- for message in messages | rejectattr('role', 'equalto', 'tool') | list %}
{% if loop.index > 3 %}{% break %}{% endif %}
{% if message.role == 'system' %}{% continue %}{% endif %}
{{ shown(message) if loop.first else shown(message, mark='*') }}{{ loop.cycle('a', 'b') }}
{% endfor %}
{{ messages | map(attribute='role') | join(',') }}
{{ messages | selectattr('content', 'defined') | list | length }}{% set nobody = [] %}
{{ '%02d|%s' | format(messages | length, nobody | default('none', true)) }}""",
    "marked": """{%- for m in messages %}
{%- if m.role == 'assistant' %}
{% generation %}
{% set said = m.content %}
{{ said }}{{ eos_token }}
{% endgeneration %}
{%- else %}
  {{ m.role }}> {{ m.content }}{# no word of this #}

{% endif %}
  {%- endfor %}
{{ said is defined }} {{ pad_token is defined }} {{ unk_token }}
""",
}


@pytest.fixture(scope="module")
def theirs():
    """A tokenizer of theirs, which puts a begin before whatever it reads."""
    tokenizer = byte_level()
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", begin)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|end|>", unk_token="<think>"
    )


def outcome(render, *given, **options):
    """A text, or what it is refused with."""
    try:
        return render(*given, **options), None
    except Exception as error:
        return None, str(error)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_is_the_text_that_theirs_is(name, theirs, tmp_path):
    theirs.chat_template = TEMPLATES[name]
    theirs.save_pretrained(tmp_path)
    ours, made = ef.ChatTemplate.read(tmp_path), 0
    for talk in TALKS.values():
        for options in (
            {},
            {"tools": TOOLS},
            {"enable_thinking": False, "date_string": "1 May 24"},
        ):
            for more in ({"add_generation_prompt": True}, {"add_generation_prompt": False}):
                given = {**options, **more}
                expected, refusal = outcome(
                    theirs.apply_chat_template, talk, tokenize=False, **given
                )
                found, reason = outcome(ours.render, talk, **given)
                assert found == expected
                if refusal is not None:
                    assert reason.startswith("The chat template `default` refuses")
                    assert refusal in reason
                    continue
                made += 1
                ids = theirs.apply_chat_template(talk, **given)["input_ids"]
                assert ours.encode(theirs.backend_tokenizer, talk, **given) == ids
    assert made >= 18


def test_named_templates_are_taken_as_theirs_are(theirs, tmp_path):
    named = {"default": "d{{ bos_token }}", "tool_use": "t{{ tools | length }}", "rag": "r"}
    theirs.chat_template = named
    theirs.save_pretrained(tmp_path)
    ours = ef.ChatTemplate.read(tmp_path)
    for options in ({}, {"tools": TOOLS}):
        expected = theirs.apply_chat_template([USER], tokenize=False, **options)
        assert ours.render([USER], **options) == expected
    assert ours.render([USER], name="rag") == "r"
