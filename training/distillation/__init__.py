"""Nest a pretrained classifier: its lower levels learn from its own answers on unlabelled photographs.

In reading order: `recipe` (options), `loop` (`distil`: the whole run), `teacher` (the pretrained classifier), `student`
(the nested network before training), `photographs`, `crops` and `crop_store` (training data on disk), `teacher_runtime`
(the teacher's answers), `dataset` (crops with answers), `losses` and `trainer` (one update), `level_loop` (training one
level), `distil_dir` (the output folder), `model_card`, `cli`.
"""
