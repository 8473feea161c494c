"""Make a pretrained classifier nested: its lower levels learn from its own answers on unlabelled photographs.

Read it in this order: `recipe` (every choice), `teacher` (the pretrained classifier), `photographs`, `crops` and
`store` (what is learnt from; `making` makes it once, `answering` has the teacher's answers, `material` puts it
together), `student` (the nested network that training starts from), `objective` and `run` (an update), `stretch` (a
level is trained), `folder` (what is left where), `loop` (all of it).
"""
