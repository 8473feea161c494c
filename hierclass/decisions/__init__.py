"""From logits to answers.

Read in this order: `prediction` (levels' logits to paths), `calibration` (temperatures and thresholds), `named_classes`
and `prior` (which classes may answer, and what speaks for them), `exit_policy` (which answers are final), `cascade`
(levels run only on images that need them).
"""
