"""Measure, calibrate and report a model's answers on labelled images.

In the order of use: `predictions` runs a network, `metrics` measures answers, `calibration` fits temperatures and
thresholds, `evaluate` does both for a checkpoint. `console`, `model_card` and `html_report` (with `report_data` and
`plots`) show the results.
"""
