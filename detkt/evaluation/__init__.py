"""Scoring of detectors: `voc` (11-point and area AP), `coco` (AP over IoUs), `voc_results` (result files)."""
