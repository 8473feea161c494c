"""Classifiers published by timm, and which of timm's backbones nest."""
