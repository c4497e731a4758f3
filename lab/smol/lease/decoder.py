"""Writes SmolLM2 as a folder that transformers loads in seconds, from its GGUF and our checkpoint.

    python -m lab.smol.lease.decoder FILE.gguf OUTPUT

transformers takes up to a minute to read the same file; the weights are equal.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from transformers import LlamaConfig, LlamaForCausalLM

CHECKPOINT = Path(__file__).parents[3] / "src/memslots/assets/smol"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
ENDS = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}


def main(file: Path, output: Path) -> None:
    """Weights in bfloat16, the configuration and the tokenizer."""
    settings = json.loads((CHECKPOINT / "config.json").read_text("utf-8"))["decoder_config"]
    config: Any = LlamaConfig(**settings)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    state = {}
    for tensor in GGUFReader(file).tensors:
        weight = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        kind, *rest = tensor.name.split(".")
        name = ENDS.get(kind) or f"model.layers.{rest[0]}.{NAMES[rest[1]]}.weight"
        if kind == "blk" and rest[1] in heads:  # llama.cpp pairs the dimensions that turn together
            shape = (heads[rest[1]], weight.shape[0] // heads[rest[1]] // 2, 2, -1)
            weight = weight.reshape(shape).swapaxes(1, 2).reshape(weight.shape)
        state[name] = torch.from_numpy(np.ascontiguousarray(weight)).to(torch.bfloat16)
    decoder = LlamaForCausalLM(config).to(torch.bfloat16)
    missing, unexpected = decoder.load_state_dict(state, strict=False)
    if unexpected or missing not in ([], ["lm_head.weight"]):
        raise ValueError(f"{file} is no SmolLM2: {missing} missing, {unexpected} unexpected.")
    decoder.save_pretrained(output)
    for name in TOKENIZER:
        shutil.copyfile(CHECKPOINT / name, output / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
