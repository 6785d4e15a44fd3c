"""`Deal`: how a cluster's machines are dealt out to workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# A worker without a GPU computes on so many CPUs: more of them hardly make one batch faster.
MOST_CPUS_EACH = 4


@dataclass(frozen=True)
class Deal:
    """What each worker gets.

    Attributes:
        workers: how many.
        gpus: of each: 1, or 0 where the cluster has none.
        cpus: that Ray sets aside for each.
        cores: that each decodes on; beside a GPU its part of all that its machine has.
    """

    workers: int
    gpus: int
    cpus: int
    cores: int

    @classmethod
    def of(cls, machines: Sequence[Mapping[str, float]]) -> Deal:
        """The deal for machines, each by its resources as Ray names them."""
        cpus = [int(machine.get("CPU", 0)) for machine in machines]
        gpus = [int(machine.get("GPU", 0)) for machine in machines]
        if sum(gpus):
            cores = min(cpu // gpu for cpu, gpu in zip(cpus, gpus, strict=True) if gpu)
            return cls(sum(gpus), 1, 1, max(cores, 1))
        each = min(max(min(filter(None, cpus), default=1) // 2, 1), MOST_CPUS_EACH)
        return cls(max(sum(count // each for count in cpus), 1), 0, each, each)
