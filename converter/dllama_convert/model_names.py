"""Which model a config.json describes, whatever class name, nesting or version of transformers wrote it."""

import re

from . import ConversionError

# transformers' class of each model that we know, by its model_type without underscores.
CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
    "glm": "GlmForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "glm4v": "Glm4vForConditionalGeneration",
    "glmocr": "GlmOcrForConditionalGeneration",
    "glm4moe": "Glm4MoeForCausalLM",
    "glm4moelite": "Glm4MoeLiteForCausalLM",
    "glm4vmoe": "Glm4vMoeForConditionalGeneration",
    "solaropen": "SolarOpenForCausalLM",
    "chatglm": "ChatGLMModel",
}
# Endings of the classes that transformers and others make of one model.
_ENDINGS = r"(forcausallm|forconditionalgeneration|lmheadmodel|pretrainedmodel|textmodel|text|model)$"
# Where models that see pictures keep the language model's fields.
_NESTED = ("text_config", "llm_config", "language_config")


def text_fields(fields: dict) -> dict:
    """The language model's fields: those of text_config and its like before those around it. Raises ConversionError if
    both say something else about the same thing."""
    nested = [key for key in _NESTED if isinstance(fields.get(key), dict)]
    if not nested:
        return fields
    inner, outer = fields[nested[0]], {key: value for key, value in fields.items() if key != nested[0]}
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        if key in inner and key in outer and inner[key] != outer[key]:
            raise ConversionError(f"{key} is {outer[key]!r}, and {inner[key]!r} in {nested[0]}")
    merged = outer | {key: value for key, value in inner.items() if value is not None or key not in outer}
    # Either may say it: the converter looks which head there is.
    merged["tie_word_embeddings"] = outer.get("tie_word_embeddings") or inner.get("tie_word_embeddings") or False
    if not inner.get("architectures") and _known(outer.get("model_type")):
        merged["model_type"] = outer["model_type"]
    return merged


def class_of(fields: dict) -> str | None:
    """transformers' class for the fields of text_fields(), or None for a model that we do not know. model_type decides,
    as in transformers' Auto classes; class names, also of remote code, where it says nothing. Raises ConversionError if
    two of them name different models."""
    names = fields.get("architectures")
    names = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    remote = fields.get("auto_map")
    remote = list(remote.values()) if isinstance(remote, dict) else []
    remote = [str(name).rsplit(".", 1)[-1] for name in remote if "Config" not in str(name)]
    by_type = _known(fields.get("model_type"))
    by_name = next((known for name in [*names, *remote] if (known := _known(name))), None)
    if by_type and by_name and by_type != by_name:
        raise ConversionError(
            f"model_type = {fields['model_type']!r} and architectures = {names or remote!r} are different models"
        )
    known = by_type or by_name
    return CLASSES[known] if known else None


def _known(name) -> str | None:
    """The key of CLASSES for a class name or a model_type."""
    if not isinstance(name, str):
        return None
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    while plain not in CLASSES and (shorter := re.sub(_ENDINGS, "", plain)) != plain:
        plain = shorter
    plain = plain if plain in CLASSES else re.sub(r"^(fsdp|ddp|peft)", "", plain)  # wrappers of training
    return plain if plain in CLASSES else None
