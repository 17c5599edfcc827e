"""Between text and token ids: what generation needs to know of a tokenizer."""

__all__: list[str] = []
