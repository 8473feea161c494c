"""The page; `app.py` is its command and its server.

Read in this order: `single` (one photograph, level by level), `messages` (numbers and reasons for a person), `drawing`
(answers as HTML), `figures` (the tree and the curve), `batch_job` (many photographs), `unpacking` (zip files),
`uploads` (files of visitors), `guard` (which requests are let through), `model_info` (the model), `endpoint_types`
(results for programs), `service` (what is done for a request, and who waits). These do not import Gradio; `widgets`,
the `tab_…` files, `endpoints` and `layout` do, and do nothing else.
"""
