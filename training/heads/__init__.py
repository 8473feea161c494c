"""Heads for classes of one's own on the network of a model, which stays as it is (``--tune heads``).

`features` computes what every level sees of every image, once; `examples` are these with their labels; `logistic` fits
linear heads; `selection` chooses levels and kind of heads by cross-validation; `fit` makes the model; `kept_features`
and `added_classes` let classes be added later; `estimate` says beforehand how long it takes.
"""
