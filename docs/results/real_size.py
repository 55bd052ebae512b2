"""CONFIG [METHOD]: three steps of every stage of a config's pair at its real size, batch 1, with peak memory.

Random weights, on the CPU: shows that the pair fits and what it costs, not what it learns. METHOD: the config's own.
"""

import resource
import sys
import time

import torch

import detkt
from detkt.config import find_config, load_config
from detkt.models import build_detector

STEPS = 3
SHORT = {"ktan": {"regressor_steps": STEPS, "warmup_steps": STEPS, "adversary_every": 1}}


def report(what: str, started: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what}: {time.perf_counter() - started:.1f} s, peak memory {peak:.2f} GiB", flush=True)


config = load_config(find_config(sys.argv[1]))
method = sys.argv[2] if len(sys.argv) > 2 else config.method
classes = len(config.data.classes or ()) or (80 if config.data.format == "coco" else 20)
torch.manual_seed(0)
started = time.perf_counter()
nets = [build_detector(net.architecture, classes + 1, **net.options) for net in (config.student, config.teacher)]
distiller = detkt.Distiller(*nets, method, SHORT.get(method)).train()
optimizer = torch.optim.SGD(distiller.trainable_parameters(), lr=1e-4, momentum=0.9)
report(f"{sys.argv[1]}, {method}: both networks built", started)

# As large as the larger of the two has its pictures.
transforms = [net.transform for net in nets]
height = max(transform.min_size[-1] for transform in transforms)
width = min(max(transform.max_size for transform in transforms), height * 5 // 3)
images = [torch.rand(3, height, width)]
boxes = torch.tensor([[0.1, 0.15, 0.3, 0.6], [0.4, 0.3, 0.7, 0.7]]) * torch.tensor([width, height, width, height])
targets = [{"boxes": boxes, "labels": torch.tensor([5, 12])}]
started = time.perf_counter()
distiller.prepare([(images, targets)])
report(f"stages before the student's, {height} x {width} pixels", started)
for step in range(STEPS * (2 if method == "ktan" else 1)):
    started = time.perf_counter()
    losses = distiller(images, targets)
    optimizer.zero_grad()
    total = sum(losses.values())
    total.backward()
    norm = torch.nn.utils.clip_grad_norm_(distiller.trainable_parameters(), 10.0, error_if_nonfinite=True)
    optimizer.step()
    report(f"step {step + 1}, {', '.join(losses)}: {total.item():.4g}, gradient {norm.item():.3g}", started)
