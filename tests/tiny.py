"""Settings of networks and runs so small that a training step takes hundredths of a second."""

from __future__ import annotations

TINY_CLASSES = ("cross", "disc", "star")
TINY_OPTIONS = {
    "min_size": 64,
    "max_size": 64,
    "anchor_sizes": [16, 32],
    "rpn_channels": 16,
    "rpn_batch_size_per_image": 16,
    "rpn_pre_nms_top_n_train": 50,
    "rpn_post_nms_top_n_train": 20,
    "rpn_pre_nms_top_n_test": 50,
    "rpn_post_nms_top_n_test": 20,
    "box_batch_size_per_image": 8,
}

TINY_TRAINING = {"epochs": 2, "batch_size": 4, "warmup_steps": 2, "workers": 0, "device": "cpu", "log_every": 4}
TINY_METHODS = {
    "ktan": {"regressor_steps": 3, "warmup_steps": 3, "discriminator_width": 8, "adversary_every": 2},
    "dln": {"regressor_steps": 3},
}
