"""Looking at photographs before a tree of classes is proposed: what the bundled model sees tells what names mean.

`kinds` relates the classes of a model to all of WordNet, `seen` runs the model on some images of each class and says
what speaks for which meaning, what images look like, and whose images do not fit their name.
"""
