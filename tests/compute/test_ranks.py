"""Ranks: read as torchrun and SLURM set them, and values exchanged without changing the loss."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from monai.losses import DiceCELoss
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.compute.ranks import ProcessError, Rank, first_node, gathered, highest, read_rank
from pipeline.losses.dice_ce import SlabDiceCELoss
from tests.support.tiny_training import SERVER

GRID = (9, 10, 11)

N_CLASSES = 7

BY_TORCHRUN = {
    "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1",
    "MASTER_ADDR": "node1", "MASTER_PORT": "29500",
}  # fmt: skip

SLURM = {
    "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_NTASKS": "4", "SLURM_NNODES": "2",
    "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "1234567", "SLURM_JOB_NODELIST": "gpu[07-08]",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Rank()),
        (BY_TORCHRUN, Rank(5, 8, 1, 4, 1, "node1", 29500, "torchrun")),
        (SLURM, Rank(3, 4, 1, 2, 1, "gpu07", 15000 + 4567, "SLURM")),
        # torchrun in a job step of one task a node
        (SLURM | {"SLURM_NTASKS": "2"} | BY_TORCHRUN, Rank(5, 8, 1, 4, 1, "node1", 29500, "torchrun")),
        # a batch script itself is no task of a step, whatever SLURM_NTASKS says
        ({name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}, Rank()),
        # a step of one task in a job of several
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, Rank()),
        (SLURM | {"MASTER_ADDR": "head", "MASTER_PORT": "4000"}, Rank(3, 4, 1, 2, 1, "head", 4000, "SLURM")),
    ],
)
def test_a_process_knows_its_rank_from_what_torchrun_and_slurm_set(environment, expected):
    assert read_rank(environment) == expected


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[07-09,12],cpu1", "gpu07"), ("gpu3", "gpu3"), ("a1,a2", "a1"), ("n[1,3].cluster", "n1.cluster"), ("", "")],
)
def test_the_first_host_of_a_node_list_is_found(nodes, first):
    assert first_node(nodes) == first


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (BY_TORCHRUN | {"MASTER_PORT": ""}, "MASTER_PORT is missing; torchrun sets it"),
        (BY_TORCHRUN | {"LOCAL_RANK": "one"}, "LOCAL_RANK: expected a number of 0 or more, found 'one'"),
        (SLURM | {"SLURM_NTASKS": "3"}, "SLURM runs 3 tasks on 2 nodes.*--ntasks-per-node"),
    ],
)
def test_a_wrong_environment_is_refused_by_name(environment, message):
    with pytest.raises(ProcessError, match=message):
        read_rank(environment)


N_SAMPLES = (4, 3, 1)
SETS = [(1, 2), tuple(range(1, N_CLASSES)), (1, 2, 3), (3,)]
"""What each sample annotates, where a part of the classes is; classes 4 to 6 in one process alone."""
TRAININGS = [*((n_samples, False) for n_samples in N_SAMPLES), (4, True), (1, True)]


class Training(nn.Module):
    """A network and its loss, as Lightning wraps them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, N_CLASSES, 1)
        weights = torch.linspace(0.2, 2, N_CLASSES)
        self.loss = SlabDiceCELoss(weights, ignore_index=255, memory_budget_mb=0.01)

    def forward(self, image, label, counted=None, annotated=None):
        return self.loss(
            self.body(image), self.head, label, across_processes=True, counted=counted, annotated=annotated
        )


def batch_of(n_samples, is_partial):
    generator = torch.Generator().manual_seed(4)
    image = torch.randn(n_samples, 1, *GRID, generator=generator)
    label = torch.randint(0, N_CLASSES, (n_samples, 1, *GRID), generator=generator)
    label[-1][label[-1] > 2] = 0  # classes that one process never sees
    sets = SETS[:n_samples] if is_partial else None
    for sample, shown in zip(label, sets or (), strict=False):
        sample[~torch.isin(sample, torch.tensor(shown))] = 0
    label[:, :, 0] = 255
    return image, label, sets


def train_a_step(rank, world_size, rendezvous, queue):
    """Take every world_size-th of four samples; those beyond `n_samples` only fill up, in the last case all of a
    process."""
    torch.manual_seed(0)
    # Ends with the process: if DistributedDataParallel holds the last reference to the group, freeing it can wait
    # forever for a thread that frees tensors (torch 2.13, ProcessGroupGloo's destructor joins it with the GIL held).
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    results = []
    for n_samples, is_partial in TRAININGS:
        torch.manual_seed(1)
        network = Training()
        wrapped = DistributedDataParallel(network)
        image, label, sets = batch_of(n_samples, is_partial)
        mine = [index % n_samples for index in range(rank, 4, world_size)]
        counted = [index < n_samples for index in range(rank, 4, world_size)]
        result = wrapped(image[mine], label[mine], counted, sets and [sets[index] for index in mine])
        result.loss.backward()
        counts = [int(gathered(n[None]).sum()) for n in (result.n_correct, result.n_voxels)]
        gradients = [p.grad.numpy() for p in network.parameters()]
        results.append((float(result.loss.detach()), gradients, counts))
    queue.put((rank, results, highest(10 * rank, torch.device("cpu"))))


def test_two_processes_have_the_loss_and_gradients_of_one_with_all_samples(tmp_path):
    queue = SERVER.Queue()
    processes = [SERVER.Process(target=train_a_step, args=(r, 2, tmp_path / "rendezvous", queue)) for r in range(2)]
    for process in processes:
        process.start()
    got = sorted((queue.get(timeout=240) for _ in processes), key=lambda one: one[0])
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert [highest for *_, highest in got] == [10, 10]
    for case, (n_samples, is_partial) in enumerate(TRAININGS):
        torch.manual_seed(1)
        alone = Training()
        image, label, sets = batch_of(n_samples, is_partial)
        expected = alone(image, label, annotated=sets)
        expected.loss.backward()
        for _, results, _ in got:
            loss, gradients, counts = results[case]
            assert loss == pytest.approx(float(expected.loss.detach()), rel=1e-6)
            for gradient, parameter in zip(gradients, alone.parameters(), strict=True):
                assert torch.allclose(torch.from_numpy(gradient), parameter.grad, rtol=1e-5, atol=1e-6)
            assert counts == [int(expected.n_correct), int(expected.n_voxels)]
        if is_partial:  # tests/losses/test_partial_labels.py compares one process with classes merged by hand
            continue
        logits = alone.head(alone.body(image))[:, :, 1:]  # the first plane is ignored
        theirs = DiceCELoss(softmax=True, to_onehot_y=True, batch=True, weight=alone.loss.class_weights)
        assert got[0][1][case][0] == pytest.approx(float(theirs(logits, label[:, :, 1:]).detach()), rel=1e-5)
