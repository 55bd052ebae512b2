"""One training step of pre-activation ResNet-1001, with and without activation checkpointing: time and peak memory.

Each in a process of its own, since the peak of a process never falls. Random weights and pictures, on the CPU.
"""

import argparse
import multiprocessing
import resource
import time

import torch
import torch.nn.functional as F

from detkt.models import build_classifier

MEBIBYTE = 2**10  # of ru_maxrss, which counts KiB


def step(checkpoint_activations: bool, batch_size: int) -> None:
    torch.manual_seed(0)
    model = build_classifier("cifar_preact_resnet1001", 10, checkpoint_activations=checkpoint_activations).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEBIBYTE
    started = time.perf_counter()
    loss = F.cross_entropy(model(torch.randn(batch_size, 3, 32, 32)), torch.arange(batch_size) % 10)
    loss.backward()
    optimizer.step()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEBIBYTE
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{'with' if checkpoint_activations else 'without'} checkpointing: {parameters:,} parameters, "
        f"batch {batch_size}, loss {loss.item():.6f}, {seconds:.1f} s, peak {peak:.0f} MiB "
        f"({peak - before:.0f} above the built network)",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    for checkpointed in (False, True):
        process = multiprocessing.get_context("spawn").Process(target=step, args=(checkpointed, arguments.batch_size))
        process.start()
        process.join()
