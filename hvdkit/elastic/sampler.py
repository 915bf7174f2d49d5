"""`horovod.torch.elastic.sampler` under hvdkit's name."""

from hvdkit.runtime.engine import horovod

ElasticSampler = horovod("horovod.torch.elastic.sampler").ElasticSampler

__all__ = ["ElasticSampler"]
