"""Several GPUs: the trainer's own code through both stages in two processes, on the CPU over gloo.

nnU-Net fixes CUDA and NCCL in two places; only these are replaced here.
"""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import save_json
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock
from torch import distributed as dist
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_dinomed3d.network_architecture.state_dict import Stage
from nnunetv2_dinomed3d.processes import PREEMPTED
from nnunetv2_dinomed3d.trainer_names import takes_slices
from nnunetv2_dinomed3d.trainers.dinomed3d.variants.paper import nnUNetTrainerDINOMed3D_paper
from nnunetv2_dinomed3d.trainers.registry import trainer_class
from tests.conftest import leave_process_group
from tests.tiny_baselines import shortened
from tests.trainers.quick_trainers import nnUNetTrainerQuick

SLABS = 5  # which two ranks do not divide: they get 3 each
RANKS = 2


def assert_equal_on_all_ranks(tensors: Mapping[str, torch.Tensor], when: str) -> None:
    for name, tensor in tensors.items():
        own = tensor.detach().contiguous()  # as a collective needs it
        both = [torch.empty_like(own) for _ in range(RANKS)]
        dist.all_gather(both, own)
        assert torch.equal(*both), f"{when}: {name} differs between the ranks"


class OnTwoRanks(nnUNetTrainerQuick):
    slab_batch_size = SLABS
    whole_validation = True

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")) -> None:  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.device, self.grad_scaler = torch.device("cpu"), None  # nnU-Net's is CUDA under DDP
        self.batch_sizes: list[int] = []

    def begin_stage(self, stage: Stage) -> None:
        if stage == 2 and self.stage == 1:
            state = {name: t for name, t in self.module.state_dict().items() if name.startswith("encoder.")}
            assert_equal_on_all_ranks(state, "what stage 2 starts from")
        super().begin_stage(stage)

    def train_step(self, batch: dict) -> dict:
        output = super().train_step(batch)
        assert len(batch["data"]) == self.batch_size
        self.batch_sizes.append(self.batch_size)
        trained = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        assert_equal_on_all_ranks(trained, f"epoch {self.current_epoch}")
        return output


class StoppedOnTwoRanks(OnTwoRanks):
    """One rank is told to stop."""

    def train_step(self, batch: dict) -> dict:
        if self.current_epoch == 1 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return super().train_step(batch)


def save_slowly(data: object, file: str, **options: bool) -> None:
    """Half-written for a second, as on a slow disk."""
    Path(file).write_text("[")
    time.sleep(1)
    save_json(data, file, **options)


def _train(rank: int, address: str, preprocessed: str, results: str) -> None:
    torch.set_num_threads(1)
    os.environ["nnUNet_results"] = results
    # a rank that waits for ever fails
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=RANKS, timeout=timedelta(minutes=10))
    stock.DDP = lambda network, device_ids: DistributedDataParallel(network)
    stock.save_json = save_slowly  # the split that rank 0 makes and all read
    if rank:
        torch.save = partial(pytest.fail, "only rank 0 writes")
    plans = json.loads(Path(preprocessed, "nnUNetPlans.json").read_text()) | {"continue_training": False}
    dataset = json.loads(Path(preprocessed, "dataset.json").read_text())
    torch.manual_seed(rank)
    stopped = StoppedOnTwoRanks(dict(plans), "3d_fullres", 0, dataset)
    with pytest.raises(SystemExit) as caught:
        stopped.run_training()
    assert caught.value.code == PREEMPTED
    assert stopped.current_epoch == 1
    trainer = OnTwoRanks(dict(plans), "3d_fullres", 0, dataset)
    trainer.run_training()
    assert trainer.stage == 2
    assert trainer.is_ddp
    sizes: list[Any] = [None] * RANKS
    dist.all_gather_object(sizes, trainer.batch_sizes)
    per_step = [sum(step) for step in zip(*sizes, strict=True)]
    assert per_step == [SLABS + 1] * 4 + [trainer.configuration_manager.batch_size] * 4
    trainer.perform_actual_validation()  # of the one case; rank 1 has none, and waits at the barrier
    leave_process_group()


class PassesOnTwoRanks(OnTwoRanks, nnUNetTrainerDINOMed3D_paper):
    """`_paper` and LoRA in stage 1, an epoch of each stage."""

    stage1_lora = True
    stage1_epochs = stage2_epochs = 1
    slab_batch_size = 12
    fixed_patch = (5, 32, 32)

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")) -> None:  # noqa: B008
        plans["configurations"]["3d_fullres"]["patch_size"] = list(self.fixed_patch)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.keys: dict[int, list[str]] = {0: [], 1: []}

    def begin_stage(self, stage: Stage) -> None:
        super(OnTwoRanks, self).begin_stage(stage)  # which makes the new LoRA equal

    def train_step(self, batch: dict) -> dict:
        self.keys[self.stage - 1] += list(batch["keys"])
        return super().train_step(batch)


def _train_on_passes(rank: int, address: str, preprocessed: str, results: str) -> None:
    torch.set_num_threads(1)
    os.environ["nnUNet_results"] = results
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=RANKS, timeout=timedelta(minutes=10))
    stock.DDP = lambda network, device_ids: DistributedDataParallel(network)
    plans = json.loads(Path(preprocessed, "nnUNetPlans.json").read_text()) | {"continue_training": False}
    dataset = json.loads(Path(preprocessed, "dataset.json").read_text())
    torch.manual_seed(rank)
    trainer = PassesOnTwoRanks(plans, "3d_fullres", 0, dataset)
    trainer.run_training()
    cases, _ = trainer.do_split()
    both: list[Any] = [None] * RANKS
    dist.all_gather_object(both, trainer.keys)
    for epoch, per_case in enumerate((9, 2)):  # slices, clips
        assert Counter(both[0][epoch] + both[1][epoch]) == dict.fromkeys(cases, per_case)
    assert trainer.batch_sizes == [6] * 3 + [1] * 4
    leave_process_group()


@pytest.mark.end_to_end
def test_two_ranks_share_each_pass(preprocessed: Path, tmp_path: Path) -> None:
    address = f"file://{tmp_path / 'rendezvous'}"
    multiprocessing.spawn(_train_on_passes, (address, str(preprocessed), str(tmp_path / "results")), nprocs=RANKS)
    assert len(list((tmp_path / "results").glob("*/PassesOnTwoRanks__*/fold_0/checkpoint_final.pth"))) == 1


class DamagedData(OnTwoRanks):
    def _check_cases(self) -> None:
        assert self.local_rank == 0, "one look is enough"
        raise ValueError("case_2: damaged")


def _refuse(rank: int, address: str, preprocessed: str, results: str) -> None:
    torch.set_num_threads(1)
    os.environ["nnUNet_results"] = results
    long = timedelta(minutes=5)  # as NCCL's
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=RANKS, timeout=long)
    stock.DDP = lambda network, device_ids: DistributedDataParallel(network)
    plans = json.loads(Path(preprocessed, "nnUNetPlans.json").read_text()) | {"continue_training": False}
    dataset = json.loads(Path(preprocessed, "dataset.json").read_text())
    trainer = DamagedData(plans, "3d_fullres", 0, dataset)
    begin = time.monotonic()
    with pytest.raises(ValueError, match=r"^case_2: damaged$"):
        trainer.run_training()
    assert time.monotonic() - begin < long.total_seconds() / 2
    os._exit(0)


@pytest.mark.end_to_end
def test_damaged_data_end_all_ranks(preprocessed: Path, tmp_path: Path) -> None:
    """Rank 0 alone looks at them; the others must not wait for it until a collective gives up."""
    address = f"file://{tmp_path / 'rendezvous'}"
    multiprocessing.spawn(_refuse, (address, str(preprocessed), str(tmp_path / "results")), nprocs=RANKS)


@pytest.mark.end_to_end
def test_both_stages_on_two_ranks(preprocessed: Path, tmp_path: Path) -> None:
    (preprocessed / "splits_final.json").unlink(missing_ok=True)
    address = f"file://{tmp_path / 'rendezvous'}"
    multiprocessing.spawn(_train, (address, str(preprocessed), str(tmp_path / "results")), nprocs=RANKS)
    (folder,) = (tmp_path / "results").glob("*/OnTwoRanks__*/fold_0")
    assert (folder / "checkpoint_final.pth").is_file()
    assert (folder / "validation" / "summary.json").is_file()
    assert len(list(folder.glob("training_log_*.txt"))) == 1
    (stopped,) = (tmp_path / "results").glob("*/StoppedOnTwoRanks__*/fold_0")
    assert torch.load(stopped / "checkpoint_latest.pth", weights_only=False)["current_epoch"] == 1
    assert "A signal to another process: epoch 1 was interrupted" in next(stopped.glob("training_log_*")).read_text()


def _train_baselines(rank: int, address: str, preprocessed: str, results: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"nnUNet_results": results, "DINOMED3D_WEIGHTS": "random"}
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=RANKS, timeout=timedelta(minutes=10))
    plans = json.loads(Path(preprocessed, "nnUNetPlans.json").read_text()) | {"continue_training": False}
    dataset = json.loads(Path(preprocessed, "dataset.json").read_text())
    for name in ("nnFormer", "SwinUNETR", "UMambaEnc", "DinoUNet_S"):
        found = trainer_class(f"nnUNetTrainerBaseline_{name}")
        torch.manual_seed(rank)
        trainer = type(f"{name}OnTwoRanks", (found,), shortened(found))(
            dict(plans), "2d" if takes_slices(found.__name__) else "3d_fullres", 0, dataset
        )
        trainer.device, trainer.grad_scaler = torch.device("cpu"), None  # nnU-Net's is CUDA under DDP
        trainer.run_training()
        assert trainer.is_ddp
        assert_equal_on_all_ranks(dict(trainer.module.named_parameters()), name)
    leave_process_group()


@pytest.mark.end_to_end
def test_baselines_on_two_ranks(preprocessed: Path, tmp_path: Path) -> None:
    address = f"file://{tmp_path / 'rendezvous'}"
    multiprocessing.spawn(_train_baselines, (address, str(preprocessed), str(tmp_path / "results")), nprocs=RANKS)
    assert len(list((tmp_path / "results").glob("*/*OnTwoRanks__*/fold_0/checkpoint_final.pth"))) == 4
