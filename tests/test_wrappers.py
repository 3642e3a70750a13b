"""The wrappers of nnU-Net on GPUs, here on the CPU: DDP (gloo, two processes) and torch.compile."""

from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_dinomed3d.network_architecture import DINOMed3D, build_dinomed3d
from nnunetv2_dinomed3d.network_architecture.state_dict import Stage
from tests.conftest import leave_process_group


def nano(seed: int = 0) -> DINOMed3D:
    torch.manual_seed(seed)
    return build_dinomed3d("nano", 1, 2, (3, 16, 16))


def _train_on_two_ranks(rank: int, address: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    network = nano(seed=rank)  # DDP makes rank 0's weights everybody's
    for stage in (1, 2):
        network.set_stage(stage, single_slab_input=stage == 1)
        wrapped = DistributedDataParallel(network)  # anew: it fixes which gradients are reduced
        optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-3)
        for step in range(2):  # a parameter without a gradient would be an error in the second
            torch.manual_seed(10 * step + rank)
            optimizer.zero_grad()
            wrapped(torch.randn(1, 1, 3, 16, 16)).square().mean().backward()
            optimizer.step()
            for name, parameter in network.named_parameters():
                both = [torch.empty_like(parameter) for _ in range(2)]
                dist.all_gather(both, parameter.detach())
                assert torch.equal(*both), f"stage {stage}, step {step}: {name} differs between the ranks"
    leave_process_group()


@pytest.mark.end_to_end
def test_ddp_keeps_the_ranks_equal_in_both_stages(tmp_path: Path) -> None:
    multiprocessing.spawn(_train_on_two_ranks, (f"file://{tmp_path / 'rendezvous'}",), nprocs=2)


@pytest.mark.parametrize("stage", [1, pytest.param(2, marks=pytest.mark.end_to_end)])
def test_compiles_without_graph_breaks_to_equal_results(stage: Stage) -> None:
    """The ViT's blocks are checkpointed, as on CUDA."""
    network = nano().eval()
    network.set_stage(stage)
    network.checkpoint_activations()
    x = torch.randn(1, 1, 3, 16, 16)
    plain = network(x)
    plain.square().mean().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)(x)
    compiled.square().mean().backward()
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(network.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.end_to_end
@pytest.mark.parametrize("stage", [1, 2])
def test_compiles_in_training_mode_under_autocast(stage: Stage) -> None:
    """Under the trainer's: the backward pass is traced in the caller's dtype, float16 would not go with bfloat16."""
    network = nano().train()
    network.set_stage(stage)
    network.checkpoint_activations()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # of a convolution whose stride is larger than its input, oneDNN's bfloat16 gradient has values never written
        logits = torch.compile(network, backend="aot_eager", fullgraph=True)(torch.randn(1, 1, 3, 32, 32))
    logits.square().mean().backward()
    gradients = [p.grad for p in network.parameters() if p.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
