"""Errors that callers may catch.

HierclassError                 everything a caller may want to catch at once
└── TaxonomyError (ValueError) a tree, a tier or a taxonomy file is wrong
"""


class HierclassError(Exception):
    """Base of every error this project raises on purpose; its text is one line that says what to do."""


class TaxonomyError(HierclassError, ValueError):
    """A taxonomy is not a tree with nested tiers, or a file or name does not lead to one."""
