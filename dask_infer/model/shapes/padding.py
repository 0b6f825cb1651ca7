"""How a call takes padded rows: what a model's class, config and code say.

Attributes only, never a call of the model. Where a model is none of transformers',
nothing is known but the names of its arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dask_infer.model.runtime.methods import signature_of
from dask_infer.spec.token_rules import TokenRules

#: Settings of ``generate`` that padding has to do with.
SETTINGS = (
    "eos_token_id",
    "pad_token_id",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "stop_strings",
)


#: Classes of transformers whose code lets padding into other tokens, whatever the mask
#: says: in plain transformers, too, a padded batch gives other values than its rows
#: alone. `tests/zoo` found them, and checks that each still does.
READ_PADDING = {
    "ConvBertModel": "convolves over tokens",
    "NystromformerModel": "means and convolves over tokens",
    "FunnelEncoder": "pools neighbouring tokens",
    "CanineModel": "convolves over characters and pools them",
    "FNetModel": "mixes all tokens, and takes no mask",
    "XLNetForSequenceClassification": "reads the last token",
    "SiglipTextModel": "reads the last token",
    "SiglipTextTransformer": "reads the last token",
    "Siglip2TextModel": "reads the last token",
    "Siglip2TextTransformer": "reads the last token",
}

#: The same for their ``generate``, which pads on the left.
GENERATE_PADDING = {"RwkvForCausalLM": "is recurrent and takes no notice of the mask"}


def token_rules(
    module: Any, function: Callable[..., Any], accepts: frozenset[str] | None
) -> TokenRules:
    """Return how `function`, a method of `module`, takes tokens.

    Parameters
    ----------
    accepts
        Keyword arguments that it takes; None for any.
    """
    generates = function == getattr(module, "generate", None) and _can_generate(module)
    # What it does not take itself, generate passes on to forward.
    reads = module.forward if generates else function
    pad = pad_token(module)
    config = getattr(module, "generation_config", None)
    settings = tuple((name, getattr(config, name, None)) for name in SETTINGS)
    return TokenRules(
        accepts,
        masked=names_mask(reads),
        pad=pad,
        left=generates and not getattr(module.config, "is_encoder_decoder", False),
        alone=pad is None and looks_for_padding(reads),
        equal_lengths=reads_padding(module, generates=generates),
        generation=settings if generates else None,
    )


def names_mask(function: Callable[..., Any]) -> bool:
    """Whether a function has a parameter ``attention_mask`` of its own."""
    signature = signature_of(function)
    return signature is not None and "attention_mask" in signature.parameters


def pad_token(module: Any) -> int | None:
    """Return the padding token of a model's config, or of its text's; None if none."""
    for config in _configs(module):
        pad = getattr(config, "pad_token_id", None)
        if isinstance(pad, int) and pad >= 0:
            return pad
    return None


def _configs(module: Any) -> list[Any]:
    config = getattr(module, "config", None)
    own = getattr(config, "get_text_config", None)
    if not callable(own):
        return [config]
    try:
        return [config, own()]
    except ValueError:  # several texts
        return [config]


def looks_for_padding(function: Callable[..., Any]) -> bool:
    """Whether a forward reads the padding token: classifiers of decoders do.

    They classify by the last token that is not padding, and without a padding token
    take one row at a time.
    """
    code = getattr(inspect.unwrap(function), "__code__", None)
    return "pad_token_id" in getattr(code, "co_names", ())


def reads_padding(module: Any, *, generates: bool = False) -> bool:
    """Whether padding changes other tokens, in the model or in a part of it."""
    parts: Callable[[], Iterable[Any]] = getattr(module, "modules", tuple)
    names = {cls.__name__ for kind in {*map(type, parts())} for cls in kind.__mro__}
    return not names.isdisjoint(READ_PADDING | (GENERATE_PADDING if generates else {}))


def generates(module: Any, call_kwargs: Mapping[str, Any]) -> bool:
    """Whether ``generate`` is transformers' own, and returns nothing but tokens."""
    own = getattr(type(module), "generate", None)
    if not getattr(own, "__qualname__", "").startswith("GenerationMixin."):
        return False
    configs = (call_kwargs.get("generation_config"), module.generation_config)
    name = "return_dict_in_generate"
    default = any(getattr(config, name, None) for config in configs if config)
    return _can_generate(module) and not call_kwargs.get(name, default)


def _can_generate(module: Any) -> bool:
    can = getattr(module, "can_generate", None)
    return callable(can) and bool(can()) and hasattr(module, "generation_config")
