"""How the tuned model is to be asked, exactly as it was in training: what prompt_format.json and the model card say."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peft import LoraConfig
from transformers import PreTrainedTokenizerBase

from finetune_api.spec.method import Quantization, QuantizationType
from finetune_trainer.base.previous_adapter import PLAIN_INITS
from finetune_trainer.handover.prepared import Prepared
from finetune_trainer.rows.row_format import thinks
from finetune_trainer.tokens.render import DATE

QUESTION = "What you ask"
"""Stands for the user's words in the rendered example."""
ASKED = [{"role": "user", "content": QUESTION}]
COMPARED = 1000
"""Training rows whose prompts are compared for what they share."""
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank takes (MaxLoRARanks in vllm/config/lora.py; 1 left out)."""


@dataclass(frozen=True)
class Serving:
    """What a server has to be told."""

    chat_template: str
    """The template to serve with; it is published with the tokenizer."""
    template_arguments: dict[str, Any]
    """What the template was given beside the messages, where it asks for it."""
    rendered: str
    """QUESTION as the only message of a user, as the model reads it; "" where the rows ask nothing and are texts to
    continue."""
    beginning: str
    """What every training prompt begins with: where it is longer than in `rendered`, the rows share a system prompt."""
    ending: str
    """What every training prompt ends with."""
    stop_tokens: dict[int, str]
    """Tokens that end an answer, with their text."""
    max_new_tokens: int

    @property
    def template_digest(self) -> str:
        """sha256 of the template, as hex."""
        return hashlib.sha256(self.chat_template.encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """prompt_format.json. `generation` is in Transformers' own terms."""
        return {
            "chatTemplate": {
                "file": "chat_template.jinja",
                "sha256": self.template_digest,
                "arguments": self.template_arguments,
            },
            "example": {"messages": ASKED, "prompt": self.rendered} if self.rendered else None,
            "trainingPrompts": {"beginWith": self.beginning, "endWith": self.ending},
            "stopTokens": [{"id": token, "text": text} for token, text in self.stop_tokens.items()],
            "generation": {"do_sample": False, "max_new_tokens": self.max_new_tokens},
        }


def serving_of(prepared: Prepared, tokenizer: PreTrainedTokenizerBase) -> Serving:
    """How a model that learned from `prepared` is asked."""
    template = dated(prepared.chat_template)
    step = max(1, len(prepared.train) // COMPARED)
    rows = [prepared.train[row] for row in range(0, len(prepared.train), step)]
    arguments = template_arguments(template, fmean(thinks(row.answer) for row in rows) > 0.5)
    prompts = [row.input_ids[: row.prompt_length] for row in rows]
    beginning = shared_beginning(prompts)
    ending = shared_beginning([prompt[::-1] for prompt in prompts])[::-1]
    rendered = tokenizer.apply_chat_template(
        ASKED, chat_template=template, tokenize=False, add_generation_prompt=True, **arguments
    )
    return Serving(
        chat_template=template,
        template_arguments=arguments,
        rendered=str(rendered) if any(map(len, prompts)) else "",
        beginning=_text(tokenizer, beginning),
        ending=_text(tokenizer, ending),
        stop_tokens={token: _text(tokenizer, [token]) for token in prepared.stop_token_ids},
        max_new_tokens=prepared.resolved.max_new_tokens,
    )


def dated(template: str) -> str:
    """The template with the day the rows were rendered on in place of today's: a prompt that changes from day to day is
    not the one that was learned."""
    call = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
    return call.sub(lambda found: repr(DATE.strftime(found[2])), template)


def template_arguments(template: str, thinking: bool) -> dict[str, Any]:
    """What the template was given that servers leave out: whether to think first, as most of the answers do or not."""
    return {"enable_thinking": thinking} if "enable_thinking" in template else {}


def shared_beginning(prompts: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    """The longest beginning that all of at least one prompt have."""
    shared = prompts[0]
    for prompt in prompts[1:]:
        length = min(len(shared), len(prompt))
        differing = np.flatnonzero(shared[:length] != prompt[:length])
        shared = shared[: differing[0] if len(differing) else length]
    return shared


def vllm_rank(config: LoraConfig) -> int:
    """The least --max-lora-rank that takes this adapter."""
    return next(rank for rank in VLLM_RANKS if rank >= config.r)


@dataclass(frozen=True)
class Vllm:
    """How vLLM serves an adapter."""

    obstacles: Sequence[str]
    """Why it would not take the adapter as it is; none where it does."""
    quantizes_alike: bool
    """Whether it can put the base model into the same 4 bits as it was in under the adapter."""
    options: str
    """What `vllm serve` has to be given with the base model; "" where there is an obstacle."""


def vllm_of(config: LoraConfig, quantization: Quantization | None) -> Vllm:
    """How vLLM serves this adapter of a base model that was held like that. Its bitsandbytes always quantizes to NF4
    with double quantization (vllm/model_executor/model_loader/bitsandbytes_loader.py)."""
    obstacles = vllm_obstacles(config)
    alike = bool(quantization and quantization.type is QuantizationType.NF4 and quantization.double_quant)
    bits = "--quantization bitsandbytes " if alike else ""
    options = "" if obstacles else f"{bits}--enable-lora --max-lora-rank {vllm_rank(config)}"
    return Vllm(obstacles, alike, options)


def vllm_obstacles(config: LoraConfig) -> list[str]:
    """Why vLLM would not take the adapter as it is, by the rules of PEFTHelper in vllm/lora/peft_helper.py, or
    would take it for another: it reads one rank and scale, and leaves the base model as it is."""
    found = {
        "DoRA": config.use_dora,
        "trained biases": config.bias != "none",
        "whole modules beside the adapter (modulesToSave)": bool(config.modules_to_save),
        f"a rank above {VLLM_RANKS[-1]}": config.r > VLLM_RANKS[-1],
        "ranks or scales of single layers": bool(config.rank_pattern or config.alpha_pattern),
        "biases of its own": config.lora_bias,
        f"a base model changed by init_lora_weights {config.init_lora_weights}": (
            config.init_lora_weights not in PLAIN_INITS
        ),
    }
    return [obstacle for obstacle, there in found.items() if there]


def _text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int] | NDArray[np.int32]) -> str:
    """The tokens' text; a character they hold only a part of is left out."""
    text = tokenizer.decode(list(map(int, tokens)), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(text).strip("\N{REPLACEMENT CHARACTER}")
