"""What is on the page; `app.py` is its command and its server.

Read it in this order: `stages` (one photograph, level by level), `wording` (numbers and reasons for a person),
`drawing` (answers as HTML), `figures` (the tree and the curve), `pile` (many photographs), `unpacking` (zip files),
`uploads` (what may be read, and when it is deleted), `guard` (what a request may ask), `about` (the model),
`answers` (what programs get), `turns` and `service` (what is done for a request). These know nothing of Gradio;
`widgets`, the `tab_…` files, `endpoints` and `layout` do, and nothing else.
"""
