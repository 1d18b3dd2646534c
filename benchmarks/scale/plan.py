"""The time of a run on n GPUs, stage by stage, in three states of the program.

    0   as it is: one GPU, which the program uses unless told otherwise
    1   shards are sampled on all GPUs, one process each
    2   also: the gate looks at shards, and hashes are taken, where shards are made; gradients of a fit are averaged over GPUs;
        runs of classifiers are spread

A stage that does not spread takes as long on 512 GPUs as on one. Processor work counts as that of one core, except for PNGs,
which the program encodes and decodes on all cores of a GPU's share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.scale import arithmetic
from benchmarks.scale.assumed import FITS, Cluster, Task
from benchmarks.scale.measured import Costs, Image
from pipeline import config
from pipeline.generators import registry

STATES = (0, 1, 2)
CURRENT, SHARDS, ALL = STATES
HASHED_BY = ("validate", "measure", "train")  # stages that hash the pool, to recognise their unfinished work
COPIES = 3  # of the decoded pool: as read, as the rows of a run, and those rows sorted by class


@dataclass(frozen=True)
class Stage:
    """A stage: seconds on one GPU, and on n GPUs from the state in which it spreads; `change` is the change that does it."""

    name: str
    one_seconds: float
    spread: Callable[[int], float] | None = None
    state: int = CURRENT
    change: str = ""

    def seconds(self, gpus: int, state: int) -> float:
        """Seconds on `gpus` in this state of the program."""
        return self.one_seconds if self.spread is None or state < self.state else self.spread(gpus)


@dataclass(frozen=True)
class Held:
    """The part of a pool that one process holds, and the memory that it must fit into."""

    name: str
    held_bytes: float
    memory_bytes: float

    @property
    def share(self) -> float:
        """Share of the memory that it fills."""
        return self.held_bytes / self.memory_bytes


@dataclass(frozen=True)
class Plan:
    """A task for images of one form on a cluster."""

    image: Image
    costs: Costs
    cluster: Cluster
    task: Task
    shard_images: int
    block_images: int  # images that a generator samples at once
    judges: int

    @classmethod
    def of(cls, image: Image, costs: Costs, cluster: Cluster | None = None, task: Task | None = None) -> Plan:
        """A plan with shards, blocks, judges and seeds as in params.yaml."""
        params = config.read()
        block = registry.settings(params, "flow_matching").model_dump()["block_images"]
        shard, judges = params.sample.shard_images, params.judges.folds
        return cls(image, costs, cluster or Cluster(), task or Task(seeds=params.arms.seeds), shard, block, judges)

    @property
    def made(self) -> int:
        """Number of images to make."""
        return arithmetic.images_to_make(self.task.wanted_images, self.costs.accepted_share)

    @property
    def pool_gigabytes(self) -> float:
        """Size of all shards."""
        return self.made * self.image.shard_bytes / 1e9

    @property
    def network_seconds(self) -> float:
        """Time of the generator per image, on a GPU."""
        c, net = self.cluster, self.image.unet
        block = arithmetic.pass_seconds(
            self.block_images, net.evaluation_flop, c.flop_per_second, net.evaluation_operations, c.launch_seconds
        )  # fmt: skip
        return self.costs.evaluations * block / self.block_images

    @property
    def made_seconds(self) -> float:
        """Time of the stage `sample` per image, on a GPU and its cores, one after the other as in the program."""
        encode = self.image.encode_seconds
        return self.network_seconds + encode / self.cluster.cores_per_gpu + self.image.write_seconds - encode

    @property
    def shard_seconds(self) -> float:
        """Time of a GPU for one shard."""
        return self.shard_images * self.made_seconds

    def sampling_seconds(self, gpus: int) -> float:
        """Time to sample all shards; each is made whole."""
        return arithmetic.rounds_seconds(arithmetic.shards(self.made, self.shard_images), gpus, self.shard_seconds)

    def fitting_gpus(self, gpus: int) -> int:
        """How many of the GPUs can share a batch."""
        return min(gpus, FITS[self.image.form].batch_images // self.task.least_images_per_gpu)

    def compute_seconds(self, gpus: int) -> float:
        """Computing time of a step of the fit whose batch these GPUs share."""
        c, net, batch = self.cluster, self.image.unet, FITS[self.image.form].batch_images
        return arithmetic.pass_seconds(
            batch // gpus, net.training_flop, c.flop_per_second, net.training_operations, c.launch_seconds
        )  # fmt: skip

    def gradient_bytes(self, gpus: int) -> float:
        """Bytes that each GPU sends in a step; gradients are fp32."""
        return arithmetic.ring_bytes(4 * self.image.unet.parameters, gpus)

    def gradient_seconds(self, gpus: int) -> float:
        """Time of the all-reduce of a step, not hidden behind the backward pass."""
        c = self.cluster
        speed = c.link_bytes_per_second if gpus <= c.gpus_per_machine else c.network_bytes_per_second
        return self.gradient_bytes(gpus) / speed

    def fitting_seconds(self, gpus: int) -> float:
        """Time of the fit, on the number of GPUs that makes it shortest."""
        steps, most = FITS[self.image.form].steps, self.fitting_gpus(gpus)
        tried = [2**i for i in range(most.bit_length())]
        return steps * min(self.compute_seconds(n) + self.gradient_seconds(n) for n in tried)

    @property
    def checkpoint_bytes(self) -> float:
        """Weights, their moving average and the optimiser's moments."""
        return self.image.unet.parameters * self.costs.checkpoint_bytes_per_parameter

    @property
    def checkpoint_seconds(self) -> float:
        """Time to hash and write a checkpoint of the fit."""
        size = self.checkpoint_bytes
        return size / 1e9 * self.costs.checkpoint_gigabyte_seconds + size / self.cluster.storage_bytes_per_second

    def dvc_seconds(self, objects: int) -> float:
        """Time to hash the pool as `objects` files and copy it into the cache."""
        return objects * self.costs.dvc_file_seconds + self.pool_gigabytes * self.costs.dvc_gigabyte_seconds

    def classifiers_seconds(self, gpus: int) -> float:
        """Time of all runs of all arms, one GPU per run."""
        t, c, net = self.task, self.cluster, self.image.classifier
        step = arithmetic.pass_seconds(
            t.classifier_batch, net.training_flop, c.flop_per_second, net.training_operations, c.launch_seconds
        )  # fmt: skip
        return arithmetic.rounds_seconds(t.arms * t.seeds, gpus, t.classifier_steps * step)

    @property
    def look_seconds(self) -> float:
        """Time of the gate's look at a shard, per image: judges on a GPU, decoding on its cores, the rest on one."""
        i, c, net = self.image, self.cluster, self.image.judge
        judges = self.judges * arithmetic.pass_seconds(
            self.shard_images, net.evaluation_flop, c.flop_per_second, net.evaluation_operations, c.launch_seconds
        )  # fmt: skip
        return judges / self.shard_images + i.decode_seconds / c.cores_per_gpu + i.look_alone_seconds - i.decode_seconds

    @property
    def stages(self) -> list[Stage]:
        """Those that can spread, then those that cannot."""
        i, k, t, made = self.image, self.costs, self.task, self.made
        look, decode = made * self.look_seconds, made * i.decode_seconds / self.cluster.cores_per_gpu
        hashed = len(HASHED_BY) * self.pool_gigabytes * k.hash_gigabyte_seconds
        soft_labels = t.seeds * made * i.classifier.evaluation_flop / self.cluster.flop_per_second
        spread = [
            Stage("fit", self.fitting_seconds(1), self.fitting_seconds, ALL, "average gradients of GPUs that share a batch"),
            Stage("sample", self.sampling_seconds(1), self.sampling_seconds, SHARDS, "a process per GPU, with its own shards"),
            Stage(f"{', '.join(HASHED_BY)}: hash the pool", hashed, lambda n: hashed / n, ALL, "keep a shard's hash beside it"),
            Stage("validate: look at each image", look, lambda n: look / n, ALL, "look at a shard where it was made"),
            Stage("train: soft labels", soft_labels, lambda n: soft_labels / n, ALL, "ask the teachers where a shard was made"),
            Stage("train: classifiers", self.classifiers_seconds(1), self.classifiers_seconds, ALL, "one GPU per run"),
        ]  # fmt: skip
        serial = [
            Stage("DVC: hash and copy the pool", self.dvc_seconds(arithmetic.shards(made, self.shard_images))),
            Stage("validate: rows of all shards", made * i.rest_seconds),
            Stage("measure, train: decode the pool", 2 * decode),
            Stage("evaluate", t.arms * t.test_rows * k.scoring_seconds),
            Stage("Prefect, DVC, start-up", k.overhead_seconds),
        ]
        return spread + serial

    def wall_seconds(self, gpus: int, state: int) -> float:
        """The whole run; stages follow each other."""
        return sum(stage.seconds(gpus, state) for stage in self.stages)

    def bottleneck(self, gpus: int, state: int) -> Stage:
        """The stage that takes longest."""
        return max(self.stages, key=lambda stage: stage.seconds(gpus, state))

    def most_speed_up(self, state: int) -> float:
        """Speed-up over one GPU in the limit of many, where work that spreads takes no time."""
        every = [(s.spread is not None and state >= s.state, s.one_seconds) for s in self.stages]
        serial, parallel = (sum(seconds for spreads, seconds in every if spreads is wanted) for wanted in (False, True))
        return arithmetic.speed_up(serial, parallel, float("inf"))

    @property
    def on_gpu(self) -> Held:
        """All rows that a run of a classifier may draw."""
        held = self.task.wanted_images * self.image.pixel_bytes
        return Held("train: accepted images of a run, on its GPU", held, self.cluster.gpu_memory_bytes)

    @property
    def memory(self) -> list[Held]:
        """What grows with the pool."""
        i, t, made, machine = self.image, self.task, self.made, self.cluster.memory_bytes
        read = i.png_bytes + COPIES * i.pixel_bytes
        return [
            Held("validate: sources of all rows", made * t.sources * i.source_bytes, machine),
            Held("validate: other columns, and what is kept of each look", made * (i.row_bytes + i.kept_bytes), machine),
            Held("validate: table under Great Expectations", made * self.costs.table_bytes, machine),
            Held(f"measure, train: the pool as PNGs and {COPIES} times decoded", made * read, machine),
            self.on_gpu,
        ]  # fmt: skip

    @property
    def worst(self) -> Held:
        """The part that fills its memory most."""
        return max(self.memory, key=lambda held: held.share)
