"""Hugging Face checkpoints and tokenizers to dllama's .m and .t files (docs/file-format.md)."""


class ConversionError(Exception):
    """An input that cannot be converted; the message names the file, field or tensor and the reason."""
