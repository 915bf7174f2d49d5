"""Files that survive: folders that are complete or absent, hashes, tensors written as safetensors."""
