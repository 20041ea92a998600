"""Which chat format a checkpoint speaks: told from its template's text, and without one from its tokens."""

from .tokenizer_file import Tokenizer

# The first whose marks all stand in the template.
_BY_TEMPLATE = [
    (("<|im_start|>", "INTELLECT"), "intellect-3"),
    (("<|im_start|>", "<function="), "intellect-3"),
    (("<|im_start|>", "enable_thinking"), "qwen3"),
    (("<|im_start|>", "<think>"), "qwen3"),
    (("<|im_start|>",), "chatml"),
    (("<|start_header_id|>",), "llama3"),
    (("[INST]",), "llama2"),
    (("[gMASK]<sop>", "/nothink"), "glm-4.5"),
    (("[gMASK]<sop>", "<arg_key>"), "glm-4.7"),
    (("[gMASK]<sop>", "<think>"), "glm-z1"),
    (("[gMASK]<sop>", "<|assistant|>"), "glm4-0414"),
]


def chat_format(model_config: dict, t: Tokenizer) -> str:
    """A chat_format name of docs/file-format.md, or "" for a model that only continues text."""
    tokens = {text for _, text, _ in t.special}
    architecture = (model_config.get("architectures") or [""])[0]
    if t.text_rules == "chatglm-6b":
        return "chatglm"
    if t.kind == "sentencepiece" and "[gMASK]" in tokens:
        return "chatglm3" if "<|user|>" in tokens else "chatglm2"
    if t.chat_template:
        for marks, name in _BY_TEMPLATE:
            if all(mark in t.chat_template for mark in marks):
                old = architecture in ("GlmForCausalLM", "ChatGLMModel") or "for item in messages" in t.chat_template
                return "glm-4-9b-chat" if name == "glm4-0414" and old else name
        return ""
    if architecture == "ChatGLMModel" and "<|assistant|>" in tokens:
        return "glm-4-9b-chat"
    return ""
