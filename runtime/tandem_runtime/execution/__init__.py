"""Turns a `StepPlan` into sampled tokens: models, layers, weights, attention backends, sampler, tensor parallelism.

The only runtime layer that computes on tensors. It decides nothing: what runs, and in which pages, is the plan's.
"""
