"""What is asked about the methods of the paper's references (`recipes.baselines`), declared before the runs."""

from repro.paper.answering import Question

QUESTIONS: tuple[Question, ...] = ()
