"""Structure `masks`: nested sparse weights over any module.

Read it in this order: `selection` (which weights are masked, and by which magnitude), `module` (a module under masks),
`network` (the nested network), `module_view` (a module run with other weights), `codec` (how weights are stored).
"""
