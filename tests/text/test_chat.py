"""Conversations become text by the template of a checkpoint, and mistakes say what is wrong."""

import datetime
import json
import sys

import pytest

import eqxformer as ef
from eqxformer.checkpoints.errors import CheckpointError, MissingFile
from eqxformer.text import chat
from tests.text.made import tokenizer_of

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <there> & é!"}]
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def rendered(template, messages=TALK, tokens=None, **options):
    return ef.ChatTemplate(template, tokens or {}).render(messages, **options)


# What templates count on


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ messages[0]['role'] }}, {{ messages[1].content }}", "system, Hi <there> & é!"),
        ("{{ eos_token }}{{ bos_token }}", "<s>"),
        ("{% if add_generation_prompt %}\n  yes\n{% endif %}\nend", "  yes\nend"),
        ("  {% set a = 1 %}\n{{ a }}", "1"),
        ("{{ {'b': '<é>', 'a': [1, none]} | tojson }}", '{"b": "<é>", "a": [1, null]}'),
        ("{{ {'a': 1} | tojson(indent=2) }}", '{\n  "a": 1\n}'),
        (
            "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}"
            "{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "02",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
            "{% endfor %}{{ ns.n }}",
            "2",
        ),
        (
            "{% for m in messages %}{% generation %}\n{{ m.role }}\n{% endgeneration %};"
            "{% endfor %}",
            "system\n;user\n;",
        ),
        ("{%- generation -%} a {%- endgeneration -%}", "a"),
        ("{{ tools is none }} {{ documents is none }} {{ a is defined }}", "True True False"),
    ],
)
def test_a_template_finds_what_it_counts_on(template, text):
    assert rendered(template, tokens={"bos_token": "<s>"}) == text


def test_the_date_of_today_is_there_in_any_form():
    days = {datetime.date.today().strftime("%d %b %Y")}
    text = rendered("{{ strftime_now('%d %b %Y') }}")
    assert text in days | {datetime.date.today().strftime("%d %b %Y")}  # at midnight


def test_options_reach_the_template_and_go_before_special_tokens():
    template = "{{ bos_token }}{{ enable_thinking }}{{ tools[0].name }}{{ add_generation_prompt }}"
    options = {"enable_thinking": False, "tools": [{"name": "f"}], "add_generation_prompt": False}
    assert rendered(template, tokens={"bos_token": "<s>"}, **options) == "<s>FalsefFalse"
    assert rendered(template, tokens={"bos_token": "<s>"}, bos_token="", **options) == "FalsefFalse"


def test_what_is_none_in_a_message_is_not_there():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    template = "{{ messages[0].content is defined }} {{ messages[0].tool_calls[0].function.name }}"
    assert rendered(template, [call]) == "False f"


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_a_thought_has_every_name_that_templates_read(name):
    message = {"role": "assistant", "content": "a", name: "hm"}
    template = "{{ messages[0].reasoning_content }} {{ messages[0].thinking }}"
    assert rendered(template, [message]) == "hm hm"
    assert rendered("{{ messages[0].thinking is defined }}", [{**message, name: None}]) == "False"


def test_parts_of_a_message_stay_what_they_are():
    parts = [{"type": "text", "text": "a"}, {"type": "image"}]
    template = "{% for p in messages[0].content %}{{ p.type }} {{ p.text }},{% endfor %}"
    assert rendered(template, [{"role": "user", "content": parts}]) == "text a,image ,"


def test_a_template_of_tools_is_taken_where_there_are_tools():
    template = ef.ChatTemplate({"default": "plain", "tool_use": "tools", "rag": "documents"})
    assert template.render(TALK) == "plain"
    assert template.render(TALK, tools=[]) == "tools"
    assert template.render(TALK, tools=[], name="rag") == "documents"
    assert ef.ChatTemplate("plain").render(TALK, tools=[]) == "plain"
    with pytest.raises(ValueError, match="no chat template `x`.*: default, rag, tool_use"):
        template.render(TALK, name="x")


def test_the_ids_of_a_conversation_have_no_second_bos():
    from tokenizers import processors

    tokenizer = type(tokenizer_of("byte level")).from_str(tokenizer_of("byte level").to_str())
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", begin)])
    template = ef.ChatTemplate("{{ bos_token }}" + PLAIN + "<|end|>", {"bos_token": "<s>"})
    ids = template.encode(tokenizer, TALK, add_generation_prompt=False)
    assert ids.count(begin) == 1
    assert ids[0] == begin
    assert ids[-1] == tokenizer.token_to_id("<|end|>")
    assert tokenizer.decode(ids, skip_special_tokens=False) == template.render(TALK)


# Where templates are found


def written(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path = path.with_name(path.name + (".jinja" if isinstance(content, str) else ".json"))
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"chat_template": PLAIN + "{{ eos_token }}", "eos_token": "</s>"},
        {"chat_template": PLAIN + "{{ eos_token }}", "eos_token": {"content": "</s>"}},
        {
            "chat_template": [
                {"name": "tool_use", "template": "tools"},
                {"name": "default", "template": PLAIN + "{{ eos_token }}{{ bos_token }}"},
            ],
            "eos_token": {"content": "</s>", "lstrip": False, "__type": "AddedToken"},
            "bos_token": None,
        },
    ],
)
def test_a_template_in_the_settings_of_a_tokenizer_is_found_with_its_tokens(settings, tmp_path):
    template = ef.ChatTemplate.read(written(tmp_path, tokenizer_config=settings))
    assert template.render(TALK) == "system: Be brief.\nuser: Hi <there> & é!\n</s>"


def test_a_file_of_its_own_goes_before_the_settings(tmp_path):
    settings = {"chat_template": "old", "bos_token": "<s>"}
    written(tmp_path, chat_template="new {{ bos_token }}", tokenizer_config=settings)
    written(tmp_path, additional_chat_templates__tool_use="tools")
    template = ef.ChatTemplate.read(str(tmp_path))
    assert template.render(TALK) == "new <s>"
    assert template.render(TALK, tools=[]) == "tools"


def test_tokens_of_an_older_checkpoint_are_found_in_their_own_file(tmp_path):
    older = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "additional_special_tokens": []}
    written(tmp_path, chat_template="{{ bos_token }}{{ eos_token }}", special_tokens_map=older)
    assert ef.ChatTemplate.read(tmp_path).render(TALK) == "<s></s>"
    written(tmp_path, tokenizer_config={"eos_token": "<end>"})
    assert ef.ChatTemplate.read(tmp_path).render(TALK) == "<s><end>"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no chat template in .*neither chat_template.jinja nor.*ChatTemplate\\(template\\)"),
        ({"tokenizer_config": {"bos_token": "<s>"}}, "no chat template in"),
        ({"tokenizer_config": {"chat_template": ["a"]}}, "text, or a list of .*; got .*'a'"),
        ({"tokenizer_config": {"chat_template": [{"name": "a"}]}}, "got {'name': 'a'}"),
        ({"tokenizer_config": {"chat_template": 7}}, "got .*7"),
        (
            {"chat_template": "a", "tokenizer_config": {"bos_token": {"id": 1}}},
            "`bos_token` must be text, or have it as its `content`; got {'id': 1}",
        ),
        ({"chat_template": "a\n{% for %}"}, "chat template `default` is no Jinja: .*line 2"),
        ({"chat_template": "{{" + " " * 2**20}, "may hold 1,048,576 bytes"),
    ],
)
def test_a_checkpoint_without_a_sound_template_is_refused(files, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        ef.ChatTemplate.read(written(tmp_path, **files))


def test_a_template_that_is_not_there_is_a_missing_file(tmp_path):
    for source in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(MissingFile):
            ef.ChatTemplate.read(source)


# Mistakes


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("Hello", r"must be dicts such as .*, in a list; got str"),
        ({"role": "user", "content": "a"}, "in a list; got dict"),
        ([], "got none"),
        (["Hello"], "message 0 is a str"),
        ([TALK], "message 0 is a list. Render one conversation at a time"),
        ([TALK[0], {"content": "a"}], "message 1 has no role, but content='a'"),
        ([{"role": 1, "content": "a"}], "message 0 has no role, but role=1"),
        ([{"role": "user", "text": "a"}], "neither content nor tool_calls, but role='user'"),
        ([{"role": "user", "content": b"a"}], r"`messages\[0\].content` must be text.* got bytes"),
        (
            [{"role": "user", "content": [{"image": object()}]}],
            r"`messages\[0\].content\[0\].image` must be text, .*; got object",
        ),
    ],
)
def test_messages_that_are_none_are_refused_with_their_place(messages, message):
    template = ef.ChatTemplate(PLAIN)
    with pytest.raises(ValueError, match=message):
        type(template).render.__wrapped__(template, messages)  # without the checks of types


def test_a_function_is_no_tool_but_its_schema_is():
    with pytest.raises(ValueError, match=r"`tools\[0\]` must be .* Give the JSON schema"):
        type(ef.ChatTemplate("")).render.__wrapped__(ef.ChatTemplate("a"), TALK, tools=[print])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('Roles must alternate!') }}", ": Roles must alternate!$"),
        ("{{ a.b.c }}", "UndefinedError: 'a' is undefined"),
        ("{{ messages[0].content + 1 }}", "TypeError: can only concatenate"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ messages[0].pop('role') }}", "SecurityError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ raise_exception.__globals__.keys() }}", "SecurityError"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "OverflowError: Range too big"),
        ("{% include 'a' %}", "TypeError: no loader"),
        ("{{ messages[0].content | tojson(default=1) }}", "TypeError"),
    ],
)
def test_what_a_template_refuses_or_may_not_do_is_an_error_about_the_messages(template, message):
    with pytest.raises(ValueError, match=f"The chat template `default` refuses.*{message}"):
        rendered(template)


def test_no_template_is_refused():
    with pytest.raises(ValueError, match="needs a template; got none"):
        ef.ChatTemplate({})
    with pytest.raises(ValueError, match="`a` is no Jinja: .*line 1"):
        ef.ChatTemplate({"default": "a", "a": "{{"})


def test_without_jinja_the_error_says_what_to_install(monkeypatch):
    chat._compiled.cache_clear()
    chat._environment.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"needs jinja2: pip install 'eqxformer\[hub\]'"):
        ef.ChatTemplate("a")
