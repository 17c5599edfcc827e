"""Conversations as the text that a model was trained on, by the template of its tokenizer."""

import dataclasses
import datetime
import functools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from eqxformer.checkpoints.errors import CheckpointError, MissingFile
from eqxformer.pretrained.locate import locate
from eqxformer.text._chat_files import templates_and_tokens


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A conversation as text: `render(messages)`, by a template in the language of Jinja.

    Templates run in a sandbox: they see nothing but what they are given and can change nothing.
    Needs jinja2, which the extra `hub` brings.

    Arguments:
        templates: a template, or several by their names; `default` is the one that is used, and
            `tool_use`, where there is one, if tools are given.
        tokens: special tokens that a template may name, such as `{"bos_token": "<s>"}`.

    Raises `ValueError` for a template that is not in the language.

    Example:
        >>> import eqxformer as ef
        >>> template = ef.ChatTemplate(
        ...     "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}\\n{% endfor %}"
        ...     "{% if add_generation_prompt %}<assistant>{% endif %}",
        ...     {"bos_token": "<s>"},
        ... )
        >>> template.render([{"role": "user", "content": "Hello!"}])
        '<s><user>Hello!\\n<assistant>'
    """

    templates: str | Mapping[str, str]
    tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self._named:
            raise ValueError("`ChatTemplate` needs a template; got none.")
        for name, template in self._named.items():
            _compiled(template, name)

    @staticmethod
    def read(source: str | os.PathLike[str], *, revision: str | None = None) -> "ChatTemplate":
        """The template of a checkpoint: `chat_template.jinja`, or what `tokenizer_config.json` has.

        Arguments:
            source: a directory, or an id of the Hugging Face Hub (with the extra `hub`).
            revision: a branch, tag or commit on the Hub.

        Raises `MissingFile` where there is no template, as for a model that was not made for
        conversations, and `CheckpointError` for files that say something else than templates.
        """
        folder = locate(source, revision=revision, patterns=("*.json", "*.jinja"))
        templates, tokens = templates_and_tokens(folder)
        if not templates:
            raise MissingFile(
                f"There is no chat template in {folder}: neither chat_template.jinja nor "
                "`chat_template` in tokenizer_config.json. Is this the checkpoint that was made "
                "for conversations? If you know its form, write it: ChatTemplate(template)."
            )
        try:
            return ChatTemplate(templates, tokens)
        except ValueError as error:
            raise CheckpointError(f"{folder}: {error}") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        name: str | None = None,
        **extra: Any,
    ) -> str:
        """The conversation as text, which ends where the answer begins.

        Arguments:
            messages: dicts such as `{"role": "user", "content": "Hello!"}`, in their order; keys
                that are None are left out.
            add_generation_prompt: whether the text goes on to where the model is to answer.
            tools: JSON schemas of functions that may be called, for templates that know them.
            name: which of several templates; `default`, or `tool_use` with tools, if None.
            extra: whatever else a template asks for, such as `enable_thinking=False`.

        Raises `ValueError` for messages that are none, and for those that the template refuses.
        """
        chosen = self._chosen(name, tools is not None)
        given = {
            **self.tokens,
            "documents": None,
            **_plain(extra, "extra"),
            "messages": _checked(messages),
            "tools": None if tools is None else _plain(list(tools), "tools"),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return _compiled(self._named[chosen], chosen).render(given)
        except Exception as error:  # a template may do anything wrong that a program may
            raise ValueError(
                f"The chat template `{chosen}` refuses these messages: {_said(error)}"
            ) from None

    def encode(
        self, tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Any
    ) -> list[int]:
        """The ids of the conversation; special tokens are those of the template and no others.

        What a message says is read as text of the template's: one that spells a special token is
        that token.

        Arguments:
            tokenizer: a `tokenizers.Tokenizer`, such as `load_tokenizer` gives.
            messages: as for `render`, like the `options`.
        """
        return tokenizer.encode(self.render(messages, **options), add_special_tokens=False).ids

    @property
    def _named(self) -> Mapping[str, str]:
        return {"default": self.templates} if isinstance(self.templates, str) else self.templates

    def _chosen(self, name: str | None, with_tools: bool) -> str:
        if name is None:
            name = "tool_use" if with_tools and "tool_use" in self._named else "default"
        if name not in self._named:
            raise ValueError(
                f"There is no chat template `{name}`; choose one with name=: "
                f"{', '.join(sorted(self._named))}."
            )
        return name


def _checked(messages: Any) -> list[dict[str, Any]]:
    """Messages of plain values, without what is None in them."""
    form = '`messages` must be dicts such as {"role": "user", "content": "Hello!"}'
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise ValueError(f"{form}, in a list; got {type(messages).__name__}.")
    if not messages:
        raise ValueError(f"{form}; got none.")
    checked = []
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping):
            several = " Render one conversation at a time." if isinstance(message, list) else ""
            raise ValueError(f"{form}; message {place} is a {type(message).__name__}.{several}")
        kept = {key: value for key, value in message.items() if value is not None}
        if not isinstance(kept.get("role"), str):
            raise ValueError(f"{form}; message {place} has no role, but {_keys(message)}.")
        if "content" not in kept and "tool_calls" not in kept:
            raise ValueError(
                f"{form}; message {place} has neither content nor tool_calls, but {_keys(message)}."
            )
        checked.append(_plain(_with_thought(kept), f"messages[{place}]"))
    return checked


def _with_thought(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose thought goes by every name that templates read, as in transformers."""
    names = ("reasoning_content", "thinking", "reasoning")
    thought = next((message[name] for name in names if name in message), None)
    if thought is None:
        return message
    return {"thinking": thought, **message, "reasoning_content": thought}


def _keys(message: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r:.40}" for key, value in message.items()) or "nothing"


def _plain(value: Any, where: str) -> Any:
    """A copy made of plain values, since methods of others would be open to a template."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{where}[{place}]") for place, inner in enumerate(value)]
    hint = " Give the JSON schema of a function." if callable(value) else ""
    raise ValueError(
        f"`{where}` must be text, a number, True, False, None, or lists and dicts of these; got "
        f"{type(value).__name__}.{hint}"
    )


def _said(error: Exception) -> str:
    """What went wrong in a template, in its own words where it has some."""
    from jinja2 import TemplateError

    text = " ".join(str(error).split()) or "no reason given"
    own = type(error) is TemplateError
    return text if own else f"{type(error).__name__}: {text}"


@functools.lru_cache(maxsize=64)
def _compiled(template: str, name: str) -> Any:
    """The template as a program; `ValueError` where it is none."""
    environment = _environment()
    from jinja2 import TemplateSyntaxError

    try:
        return environment.from_string(template)
    except TemplateSyntaxError as error:
        raise ValueError(
            f"The chat template `{name}` is no Jinja: {error.message} (line {error.lineno})."
        ) from None


@functools.cache
def _environment() -> Any:
    """The sandbox that templates run in, with the helpers that they count on."""
    try:
        from jinja2 import TemplateError, nodes
        from jinja2.ext import Extension
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise ImportError("`ChatTemplate` needs jinja2: pip install 'eqxformer[hub]'.") from None

    class Generation(Extension):
        """`{% generation %}` marks, for training, what the model says; here it says nothing."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; Jinja's own is made for pages of the web."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
