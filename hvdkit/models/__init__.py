"""Language models: small built-in ones of torch.nn parts, one's own, and Hugging Face's behind one interface.

    model = build_model("gpt-mini", vocab_size=tokenizer.vocab_size, context=128)    # a LanguageModel (nn.Module)
    logits = model(tokens)                            # (b, t) int64 -> (b, t, vocab_size)
    model.objective, model.context, model.vocab_size, model.name
    save_model(folder, model)                         # safetensors and config.json, written beside, then renamed
    write_model(folder, model)                        # the same files into a folder that you are making
    model = load_model(folder)                        # an hvdkit folder or a Hugging Face one
    load_weights(model, folder)                       # CheckpointError names what does not fit
    text = generate(model, tokenizer, "def main(", 200, temperature=0.8, top_k=40, seed=0)

`build_model` takes a preset of `PRESETS`, `hf:gpt2` or `hf:gpt2,n_layer=2,n_embd=64`, a model folder, or
`package.module:function`; importing this package loads neither transformers nor safetensors.
"""

from hvdkit.models.bert import BERT
from hvdkit.models.build import build_model
from hvdkit.models.config import ModelConfig
from hvdkit.models.folder import load_model, load_weights, save_model, write_model
from hvdkit.models.gpt import GPT
from hvdkit.models.language_model import LanguageModel, count_parameters
from hvdkit.models.presets import PRESETS
from hvdkit.models.sampling import generate
from hvdkit.models.state import copied_state, distinct_tensors, load_tensors

__all__ = [
    "BERT",
    "GPT",
    "PRESETS",
    "LanguageModel",
    "ModelConfig",
    "build_model",
    "copied_state",
    "count_parameters",
    "distinct_tensors",
    "generate",
    "load_model",
    "load_tensors",
    "load_weights",
    "save_model",
    "write_model",
]
