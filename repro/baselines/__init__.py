"""Update rules of the methods that the paper's references would have used with the same images.

Nothing imports this package. A recipe of `recipes.baselines` names its rule as repro.baselines.MODULE:CLASS. It is loaded as
a rule of the user's own is (`optim.rule`), and its source is part of the run's identity. Each rule may go when its question
is answered: with its file go its recipes, its questions in `paper.baselines`, and its row in tests/test_baselines.py.
"""
