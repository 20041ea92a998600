"""Model families: what each architecture's config and tensors become in a .m file.

A module per family; its function returns a Plan (plan.py)."""

import pathlib

from .. import ConversionError
from ..checkpoint import Checkpoint
from ..config_fields import SIZES
from ..hf_config import HfConfig
from ..printing import shown
from .chatglm import chatglm
from .glm import glm
from .glm4moe import glm4moe
from .glm4moelite import glm4moelite
from .llama import llama
from .plan import Builder, MismatchError, Output, Plan
from .qwen3 import qwen3

__all__ = ["Output", "Plan", "make_plan", "plan_of"]

FAMILIES = {
    "LlamaForCausalLM": llama,
    "MistralForCausalLM": llama,
    "Qwen2ForCausalLM": llama,
    "Qwen3ForCausalLM": qwen3,
    "Qwen3MoeForCausalLM": qwen3,
    "GlmForCausalLM": glm,
    "Glm4ForCausalLM": glm,
    "Glm4vForConditionalGeneration": glm,
    "GlmOcrForConditionalGeneration": glm,
    "Glm4MoeForCausalLM": glm4moe,
    "Glm4vMoeForConditionalGeneration": glm4moe,
    "SolarOpenForCausalLM": glm4moe,
    "Glm4MoeLiteForCausalLM": glm4moelite,
    "ChatGLMModel": chatglm,
}


def make_plan(folder: pathlib.Path, checkpoint: Checkpoint, ignore_unknown: bool = False) -> Plan:
    """What the checkpoint in `folder` becomes. Raises ConversionError, naming what is not supported."""
    return plan_of(HfConfig.read(folder), checkpoint, ignore_unknown)


def plan_of(config: HfConfig, checkpoint: Checkpoint, ignore_unknown: bool = False) -> Plan:
    family = FAMILIES.get(config.class_name)
    if family is None:
        name = shown(config.get("architectures") or config.get("model_type") or "(none)")
        raise ConversionError(f"{config.path}: architecture {name} is not supported ({', '.join(FAMILIES)})")
    builder = Builder(checkpoint)
    if config.sees_pictures:
        builder.leave_out_pictures()
    try:
        plan = family(config, builder)
        if not ignore_unknown:
            config.refuse_unknown()
        builder.finish(ignore_unknown)
    except MismatchError as error:
        sizes = ", ".join(f"{key} = {shown(config.fields.get(key))}" for key in SIZES if config.asked_for(key))
        raise ConversionError(f"{error} ({config.path.name}: {sizes})") from error
    plan.notes = config.notes + builder.notes
    return plan
