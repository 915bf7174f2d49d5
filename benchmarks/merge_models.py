"""Writes the models that `bench_merge.py` merges (`write FOLDER PARAMETERS COUNT`), and compares two (`difference`).

A program of its own, so that the benchmark itself holds no model.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def write_models(folder: Path, parameters: int, count: int) -> None:
    """A base, first, and `count` models of about `parameters` values in bfloat16, in the layout of Llama."""
    width = max(64, round((parameters / 313) ** 0.5 / 64) * 64)  # 18 layers of 16 width^2, and the embedding
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (25 * width, width),
        "model.norm.weight": (width,),
    }
    for layer in range(18):
        inner = {"self_attn.q_proj": (width, width), "self_attn.k_proj": (width, width),
                 "self_attn.v_proj": (width, width), "self_attn.o_proj": (width, width),
                 "mlp.gate_proj": (4 * width, width), "mlp.up_proj": (4 * width, width),
                 "mlp.down_proj": (width, 4 * width), "input_layernorm": (width,),
                 "post_attention_layernorm": (width,)}  # fmt: skip
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in inner.items()}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width,
              "intermediate_size": 4 * width, "num_hidden_layers": 18, "num_attention_heads": width // 64,
              "num_key_value_heads": width // 64, "vocab_size": 25 * width, "tie_word_embeddings": True,
              "torch_dtype": "bfloat16"}  # fmt: skip
    for number in range(count + 1):
        path = folder / ("base" if number == 0 else f"model{number}")
        path.mkdir()
        base, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(number)
        tensors = {}
        for name, shape in shapes.items():
            values = torch.randn(shape, generator=base).mul_(0.02)
            if number:
                values.add_(torch.randn(shape, generator=own), alpha=0.002)
            tensors[name] = values.bfloat16()
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        (path / "config.json").write_text(json.dumps(config))


def difference(one: Path, other: Path) -> float:
    """The largest difference of any value of two merged models."""
    largest = 0.0
    for path in other.glob("*.safetensors"):
        with safe_open(one / "model.safetensors", "pt") as mine, safe_open(path, "pt") as theirs:
            for name in theirs.keys():  # noqa: SIM118 - it is no dictionary
                gap = (mine.get_tensor(name).float() - theirs.get_tensor(name).float()).abs().max()
                largest = max(largest, float(gap))
    return largest


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write_models(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        print(difference(Path(sys.argv[2]), Path(sys.argv[3])))
