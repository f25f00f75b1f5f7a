"""Subtask-adaptive networks: one trained model, cut down to any subset of its tasks or classes.

The one idea: each basis subtask learns how much it needs each unit of the model. What a union of
subtasks needs of a unit is the larger of what they need, so n learned masks say how to make
2^n - 1 smaller networks. The method is that of the patent application WO2021251960A1; equations
that its text does not print are our reconstruction.

    config     what a recipe says of subtasks and masks
    subtasks   the tasks and classes that a subtask's name stands for
    masks      utility and scaling masks, their unions, what is kept
    generator  the masks as a network's answer to "which subtasks?"
    sampling   which unions train at a step
    objective  the loss within a subtask, and the price of units
    attach     masks as a child of their model, in its checkpoints and bundles
    passes     micro-batches through a model with masks, in training
    kept       what subtasks keep while they learn
"""
