"""Few samples backward on scikit-learn's digits: the gradient, and a training."""
