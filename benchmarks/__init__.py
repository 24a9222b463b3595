"""The benchmark: ``python -m benchmarks`` measures fastvi beside eager PyTorch and torch.compile.

An op is one file in ``benchmarks/ops``: its inputs, and the same mathematics for each provider.
``cases`` lists the shapes and the targets, ``rounds`` runs them, ``worker`` takes the times.
"""
