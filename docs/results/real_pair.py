"""Three steps of every KTAN stage on ResNet-152 -> ResNet-50 C4 at 600 x 1000 px, with peak memory.

Random weights, batch 1, on the CPU: shows that the pair fits and what it costs, not what it learns.
"""

import resource
import time

import torch

import detkt
from detkt.models import build_detector


def report(what: str, started: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what}: {time.perf_counter() - started:.1f} s, peak memory {peak:.2f} GiB", flush=True)


torch.manual_seed(0)
started = time.perf_counter()
student, teacher = build_detector("fasterrcnn_resnet50_c4", 21), build_detector("fasterrcnn_resnet152_c4", 21)
distiller = detkt.Distiller(
    student, teacher, "ktan", {"regressor_steps": 3, "warmup_steps": 3, "adversary_every": 1}
).train()
optimizer = torch.optim.SGD(distiller.trainable_parameters(), lr=1e-3, momentum=0.9)
report("both networks built", started)

images = [torch.rand(3, 600, 1000)]
boxes = torch.tensor([[100.0, 100, 400, 500], [500, 200, 900, 580]])
targets = [{"boxes": boxes, "labels": torch.tensor([5, 12])}]
started = time.perf_counter()
distiller.prepare([(images, targets)])
report("regressor, 3 steps", started)
for stage in 3 * ["warmup"] + 3 * ["adversarial"]:
    started = time.perf_counter()
    losses = distiller(images, targets)
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
    report(f"{stage}, {len(losses)} losses", started)
